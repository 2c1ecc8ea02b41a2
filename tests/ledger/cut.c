/* A loss of power, below SQLite: loaded before the C library, it remembers what was written to *.sqlite3 files and not
   synced since, and at the nth such write keeps any part of that, tears one of the writes, and ends the process.

   cut_after(n, seed) starts the count; cut_writes() returns it. What is synced is never touched. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MOST 65536
struct written { int fd; off_t at, size; size_t n, had; char *new, *old; };
static struct written pending[MOST];
static int count;
static long writes, limit;
static ssize_t (*real_pwrite)(int, const void *, size_t, off_t);
static int (*real_fsync)(int), (*real_fdatasync)(int), (*real_ftruncate)(int, off_t), (*real_close)(int);

__attribute__((constructor)) static void begin(void) {
    real_pwrite = dlsym(RTLD_NEXT, "pwrite");
    real_fsync = dlsym(RTLD_NEXT, "fsync");
    real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
    real_ftruncate = dlsym(RTLD_NEXT, "ftruncate");
    real_close = dlsym(RTLD_NEXT, "close");
}

static int watched(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return strstr(path, ".sqlite3") && !strstr(path, "-shm");
}

static void forget(int fd) {
    int kept = 0;
    for (int i = 0; i < count; i++) {
        if (pending[i].fd != fd) pending[kept++] = pending[i];
        else free(pending[i].new), free(pending[i].old);
    }
    count = kept;
}

static void cut(void) {
    for (int i = count - 1; i >= 0; i--) {
        struct written *w = &pending[i];
        if (w->had) real_pwrite(w->fd, w->old, w->had, w->at);
        real_ftruncate(w->fd, w->size);
    }
    int torn = count ? rand() % count : 0;
    for (int i = 0; i < count; i++) {
        struct written *w = &pending[i];
        if (rand() % 2) continue;
        size_t n = i == torn && w->n > 512 ? 512 * (rand() % (w->n / 512)) : w->n;
        real_pwrite(w->fd, w->new, n, w->at);
    }
    _exit(9);
}

void cut_after(long n, unsigned seed) { srand(seed); writes = 0; limit = n; count = 0; }
long cut_writes(void) { return writes; }

ssize_t pwrite(int fd, const void *bytes, size_t n, off_t at) {
    if (limit && watched(fd) && count < MOST) {
        struct stat now;
        fstat(fd, &now);
        struct written w = {fd, at, now.st_size, n, 0, malloc(n), malloc(n)};
        ssize_t had = pread(fd, w.old, n, at);
        w.had = had > 0 ? had : 0;
        memcpy(w.new, bytes, n);
        pending[count++] = w;
        if (++writes == limit) {
            real_pwrite(fd, bytes, n, at);
            cut();
        }
    }
    return real_pwrite(fd, bytes, n, at);
}
ssize_t pwrite64(int fd, const void *bytes, size_t n, off_t at) { return pwrite(fd, bytes, n, at); }
int fsync(int fd) { int done = real_fsync(fd); if (limit && !done) forget(fd); return done; }
int fdatasync(int fd) { int done = real_fdatasync(fd); if (limit && !done) forget(fd); return done; }
int ftruncate(int fd, off_t size) { if (limit) forget(fd); return real_ftruncate(fd, size); }
int ftruncate64(int fd, off_t size) { return ftruncate(fd, size); }
int close(int fd) { if (limit) forget(fd); return real_close(fd); }
