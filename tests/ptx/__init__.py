"""An emulator of PTX: runs the compiled GPU kernels on the CPU and checks every access, barrier and shuffle."""
