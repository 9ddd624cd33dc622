// For wheels that are built on a newer system than they shall run on (SVDRD_OLD_GLIBC, x86-64).
//
// A linker binds each function to the newest version that this system's glibc has of it, and an older glibc refuses to load
// the module. These few have had a new version since 2.28; the old ones are still there, and do the same.
// --wrap sends the calls here, those of the static libstdc++ too.
#include <pthread.h>

extern "C" {

double hypot_of_2_2_5(double, double);
int pthread_create_of_2_2_5(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
int pthread_detach_of_2_2_5(pthread_t);
int pthread_join_of_2_2_5(pthread_t, void**);
int pthread_once_of_2_2_5(pthread_once_t*, void (*)());
__asm__(".symver hypot_of_2_2_5, hypot@GLIBC_2.2.5");
__asm__(".symver pthread_create_of_2_2_5, pthread_create@GLIBC_2.2.5");
__asm__(".symver pthread_detach_of_2_2_5, pthread_detach@GLIBC_2.2.5");
__asm__(".symver pthread_join_of_2_2_5, pthread_join@GLIBC_2.2.5");
__asm__(".symver pthread_once_of_2_2_5, pthread_once@GLIBC_2.2.5");

double __wrap_hypot(double x, double y) { return hypot_of_2_2_5(x, y); }

int __wrap_pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*start)(void*), void* argument) {
  return pthread_create_of_2_2_5(thread, attributes, start, argument);
}

int __wrap_pthread_detach(pthread_t thread) { return pthread_detach_of_2_2_5(thread); }

int __wrap_pthread_join(pthread_t thread, void** result) { return pthread_join_of_2_2_5(thread, result); }

int __wrap_pthread_once(pthread_once_t* once, void (*routine)()) { return pthread_once_of_2_2_5(once, routine); }

// A variable of glibc 2.32: while it is not 0, libstdc++ counts references without atomic operations. With 0 it never does.
__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;

}  // extern "C"
