/* What the kernel's own part of a sample costs: a program that dumps the statistics of all links and looks at nothing
 * but the end of the dump. Arguments: how many dumps, pause between two in microseconds. Prints the mean process CPU
 * time of a dump in nanoseconds, and the number of records of the last one. Comparison for bench/sampling.py. */
#define _GNU_SOURCE
#include <linux/if_link.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static long long cpu_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static long dump(int fd, unsigned sequence) {
    static char buffer[65536] __attribute__((aligned(8)));
    struct {
        struct nlmsghdr head;
        struct if_stats_msg body;
    } request = {
        .head = {sizeof request, RTM_GETSTATS, NLM_F_REQUEST | NLM_F_DUMP, sequence, 0},
        .body = {.filter_mask = IFLA_STATS_FILTER_BIT(IFLA_STATS_LINK_64)},
    };
    long records = 0;
    if (send(fd, &request, sizeof request, 0) < 0) exit(1);
    for (;;) {
        int left = recv(fd, buffer, sizeof buffer, 0);
        if (left < 0) exit(1);
        for (struct nlmsghdr *at = (void *)buffer; NLMSG_OK(at, left); at = NLMSG_NEXT(at, left)) {
            if (at->nlmsg_type == NLMSG_ERROR) exit(1);
            if (at->nlmsg_type == NLMSG_DONE) return records;
            records++;
        }
    }
}

int main(int count, char **arguments) {
    if (count != 3) return 2;
    int rounds = atoi(arguments[1]), pause_us = atoi(arguments[2]);
    struct sockaddr_nl self = {.nl_family = AF_NETLINK};
    int fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
    if (fd < 0 || bind(fd, (void *)&self, sizeof self) < 0) return 1;
    long long total = 0;
    long records = 0;
    for (int round = 0; round < rounds; round++) {
        long long before = cpu_ns();
        records = dump(fd, round + 1);
        total += cpu_ns() - before;
        if (pause_us) usleep(pause_us);
    }
    printf("%lld %ld\n", total / rounds, records);
    return 0;
}
