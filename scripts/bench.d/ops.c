// The clients of scripts/bench whose own cost must not show: loops over system calls and nothing else.
// A LIST is a file of NUL-terminated paths, relative to the current directory.
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PAGE = 4096, CHUNK = 64 * 1024 };

struct list {
    char *bytes;
    size_t size;
};

static struct list read_list(const char *path) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) < 0) err(1, "%s", path);
    struct list list = {malloc(st.st_size + 1), st.st_size};
    if (!list.bytes || read(fd, list.bytes, list.size) != (ssize_t)list.size) err(1, "%s", path);
    close(fd);
    return list;
}

#define EACH(list, name) \
    for (char *name = (list).bytes; name < (list).bytes + (list).size; name += strlen(name) + 1)

static void *buffer(size_t size) {
    void *bytes = NULL;
    if (posix_memalign(&bytes, PAGE, size)) errx(1, "out of memory");
    memset(bytes, 'p', size);
    return bytes;
}

static int open_or_die(const char *path, int flags) {
    int fd = open(path, flags | O_CLOEXEC, 0644);
    if (fd < 0) err(1, "%s", path);
    return fd;
}

static void write_or_die(int fd, const void *bytes, size_t size, off_t offset) {
    if (pwrite(fd, bytes, size, offset) != (ssize_t)size) err(1, "pwrite");
}

static uint64_t next_random(uint64_t *state) { // xorshift64*, the same sequence in every run
    *state ^= *state >> 12, *state ^= *state << 25, *state ^= *state >> 27;
    return *state * 0x2545F4914F6CDD1DULL;
}

static void stat_list(const char *path, long times) {
    struct list list = read_list(path);
    long found = 0, missing = 0;
    for (long i = 0; i < times; i++)
        EACH(list, name) {
            struct stat st;
            if (lstat(name, &st) == 0) found++;
            else if (errno == ENOENT) missing++;
            else err(1, "%s", name);
        }
    printf("found %ld missing %ld\n", found, missing);
}

static void read_files(const char *path, long times) {
    struct list list = read_list(path);
    char *bytes = buffer(CHUNK);
    long long total = 0;
    for (long i = 0; i < times; i++)
        EACH(list, name) {
            int fd = open_or_die(name, O_RDONLY);
            ssize_t size;
            do {
                size = read(fd, bytes, CHUNK);
                if (size < 0) err(1, "%s", name);
                total += size;
            } while (size == CHUNK);
            close(fd);
        }
    printf("read %lld bytes\n", total);
}

static void append_line(const char *path) {
    struct list list = read_list(path);
    long files = 0;
    EACH(list, name) {
        int fd = open_or_die(name, O_WRONLY | O_APPEND);
        if (write(fd, "one more line\n", 14) != 14) err(1, "%s", name);
        close(fd);
        files++;
    }
    printf("appended to %ld\n", files);
}

static void create_files(long count) {
    char *bytes = buffer(PAGE), name[32];
    for (long i = 0; i < count; i++) {
        snprintf(name, sizeof name, "f%ld", i);
        int fd = open_or_die(name, O_WRONLY | O_CREAT | O_EXCL);
        if (write(fd, bytes, PAGE) != PAGE) err(1, "%s", name);
        close(fd);
    }
}

static void rename_files(long count) {
    char from[32], to[32];
    for (long i = 0; i < count; i++) {
        snprintf(from, sizeof from, "f%ld", i);
        snprintf(to, sizeof to, "g%ld", i);
        if (rename(from, to) < 0) err(1, "%s", from);
    }
}

static void unlink_files(long count) {
    char name[32];
    for (long i = 0; i < count; i++) {
        snprintf(name, sizeof name, "g%ld", i);
        if (unlink(name) < 0) err(1, "%s", name);
    }
}

static void read_sequential(const char *path, long block) {
    int fd = open_or_die(path, O_RDONLY);
    char *bytes = buffer(block);
    long long total = 0;
    ssize_t size;
    while ((size = read(fd, bytes, block)) > 0) total += size;
    if (size < 0) err(1, "%s", path);
    printf("read %lld bytes\n", total);
}

static void read_random(const char *path, long count) {
    int fd = open_or_die(path, O_RDONLY);
    char *bytes = buffer(PAGE);
    uint64_t pages = lseek(fd, 0, SEEK_END) / PAGE, state = 88172645463325252ULL, sum = 0;
    for (long i = 0; i < count; i++) {
        if (pread(fd, bytes, PAGE, next_random(&state) % pages * PAGE) != PAGE) err(1, "%s", path);
        sum += (unsigned char)bytes[i % PAGE];
    }
    printf("sum %llu\n", (unsigned long long)sum);
}

static void read_mapped(const char *path, long count) {
    int fd = open_or_die(path, O_RDONLY);
    size_t size = lseek(fd, 0, SEEK_END);
    unsigned char *bytes = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
    if (bytes == MAP_FAILED) err(1, "%s", path);
    uint64_t pages = size / PAGE, state = 88172645463325252ULL, sum = 0;
    for (long i = 0; i < count; i++) sum += bytes[next_random(&state) % pages * PAGE + i % PAGE];
    printf("sum %llu\n", (unsigned long long)sum);
}

static void write_sequential(const char *path, long total, long block) {
    int fd = open_or_die(path, O_WRONLY | O_CREAT | O_TRUNC);
    char *bytes = buffer(block);
    for (off_t at = 0; at < total; at += block) write_or_die(fd, bytes, block, at);
}

static void write_random(const char *path, long count) {
    int fd = open_or_die(path, O_RDWR);
    char *bytes = buffer(PAGE);
    uint64_t pages = lseek(fd, 0, SEEK_END) / PAGE, state = 88172645463325252ULL;
    for (long i = 0; i < count; i++) write_or_die(fd, bytes, PAGE, next_random(&state) % pages * PAGE);
}

int main(int argc, char **argv) {
    const char *op = argc > 1 ? argv[1] : "";
    const char *path = argc > 2 ? argv[2] : "";
    long first = argc > 3 ? atol(argv[3]) : 0, second = argc > 4 ? atol(argv[4]) : 0;
    if (!strcmp(op, "stat") && argc == 4) stat_list(path, first);
    else if (!strcmp(op, "read") && argc == 4) read_files(path, first);
    else if (!strcmp(op, "append") && argc == 3) append_line(path);
    else if (!strcmp(op, "create") && argc == 3) create_files(atol(path));
    else if (!strcmp(op, "rename") && argc == 3) rename_files(atol(path));
    else if (!strcmp(op, "unlink") && argc == 3) unlink_files(atol(path));
    else if (!strcmp(op, "read-sequential") && argc == 4) read_sequential(path, first);
    else if (!strcmp(op, "read-random") && argc == 4) read_random(path, first);
    else if (!strcmp(op, "read-mapped") && argc == 4) read_mapped(path, first);
    else if (!strcmp(op, "write-sequential") && argc == 5) write_sequential(path, first, second);
    else if (!strcmp(op, "write-random") && argc == 4) write_random(path, first);
    else errx(2, "usage: ops OPERATION LIST|FILE|COUNT [NUMBER...]; see the source");
    return 0;
}
