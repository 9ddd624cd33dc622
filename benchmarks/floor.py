"""The least time that a polar factor or the basis loss can take on a known GPU by matrix products alone.

A factor is 42 products and its derivative 4/3 of that (with stored iterates), ``2 max(m, n) min(m, n)^2`` operations
each, at the device's peak; or what its inputs and results take to travel, if that is longer. "tf32x3" counts three
TF32 products on the tensor cores for each, "float32" the plain cores.
"""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.measure import Row

PRODUCTS = 42
DERIVATIVE = 4 / 3
PRECISIONS = ("tf32x3", "float32")


class Peaks(NamedTuple):
    """Operations and bytes a second."""

    float32: float
    tf32: float  # without sparsity
    bandwidth: float

    def operations(self, precision: str) -> float:
        return {"tf32x3": self.tf32 / 3, "float32": self.float32}[precision]


# NVIDIA's data sheets, by a part of the name that torch.cuda.get_device_name() gives; the first that fits counts.
KNOWN = {
    "H200": Peaks(67e12, 495e12, 4.8e12),
    "H100 PCIe": Peaks(51e12, 378e12, 2.0e12),
    "H100 80GB HBM3": Peaks(67e12, 495e12, 3.35e12),
    "A100-SXM4-80GB": Peaks(19.5e12, 156e12, 2.04e12),
    "A100 80GB PCIe": Peaks(19.5e12, 156e12, 1.94e12),
    "A100-SXM4-40GB": Peaks(19.5e12, 156e12, 1.55e12),
    "A100-PCIE-40GB": Peaks(19.5e12, 156e12, 1.55e12),
}
UNKNOWN = "unknown device: no fraction"


def peaks(device: str) -> Peaks | None:
    """Of the device with this name; None if it is not in the table."""
    return next((found for part, found in KNOWN.items() if part in device), None)


def seconds(row: Row, precision: str) -> float | None:
    """The floor of what a float32 row timed; None for an unknown device, and where no floor is defined.

    The loss's backward alone has none: its derivative comes with the forward.
    """
    device = peaks(row.device)
    mode = row.mode.split(",")[0]
    # Factors with their derivatives counted in, and matrices that travel.
    work = {
        ("polar_factor", "forward"): (1.0, 2),
        ("polar_factor", "backward"): (DERIVATIVE, 3),
        ("polar_factor", "both"): (1 + DERIVATIVE, 4),
        ("basis_loss", "forward"): (2.0, 2),
        ("basis_loss", "both"): (2 + DERIVATIVE, 3),
    }.get((row.op, mode))
    if device is None or work is None or row.dtype != "float32":
        return None
    factors, travelling = work
    operations = factors * PRODUCTS * 2 * max(row.m, row.n) * min(row.m, row.n) ** 2 * row.batch
    traffic = travelling * row.batch * row.m * row.n * 4
    return max(operations / device.operations(precision), traffic / device.bandwidth)


def fraction(row: Row, precision: str) -> float | None:
    """Floor over time, 1 at best."""
    floor = seconds(row, precision)
    return None if floor is None or row.p50 is None else floor / row.p50
