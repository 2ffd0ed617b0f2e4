/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
 *
 * Sources, calls, and the machine as a whole; daemons that go and come.
 */
#include "check.h"
#include <sys/wait.h>

static struct bench bench;

static const uint32_t executors[] = {PAPR_INTC_MAPPED, PAPR_INTC_REMOTE};

static void xics_calls_are_served(struct bench *b)
{
    uint32_t lisn = 0x1001, server, cells[3] = {lisn, 0, PRIORITY}, rets[3] = {9, 9, 9};
    uint64_t args[9] = {0xff};
    int64_t ret;
    MUST(papr_intc_claim(b->intc, lisn, 1, PAPR_INTC_CLAIM_LSI));
    CHECK(papr_intc_rtas(b->vcpu[0], PAPR_INTC_RTAS_SET_XIVE, cells, 3, rets, 1) == 1 && rets[0] == 0);
    CHECK(papr_intc_rtas(b->vcpu[1], PAPR_INTC_RTAS_GET_XIVE, cells, 1, rets, 3) == 3);
    server = rets[1];
    CHECK(rets[0] == 0 && server == 0 && rets[2] == PRIORITY);
    CHECK(papr_intc_hcall(b->vcpu[0], H_CPPR, args, &ret) == 1 && ret == 0);
    CHECK(papr_intc_pending(b->vcpu[0]) == 0);
    MUST(papr_intc_set_irq(b->intc, lisn, 1));
    await_line(b, 1);
    memset(args, 0, sizeof(args));
    CHECK(papr_intc_hcall(b->vcpu[0], H_XIRR, args, &ret) == 1 && ret == 0);
    CHECK(args[0] == (0xff000000 | lisn));
    MUST(papr_intc_set_irq(b->intc, lisn, 0));
    CHECK(papr_intc_hcall(b->vcpu[0], H_EOI, args, &ret) == 1 && ret == 0);
    CHECK(papr_intc_pending(b->vcpu[0]) == 0);
    memset(args, 7, sizeof(args));
    CHECK(papr_intc_hcall(b->vcpu[0], 0x58, args, &ret) == 0); /* H_PUT_TERM_CHAR */
    CHECK(args[0] == 0x0707070707070707);
}

static void xics_needs_no_shared_ram_and_xive_says_that_it_does(void)
{
    papr_intc *intc;
    for (int i = 0; i < 2; i++) {
        struct plan p;
        plan(&p, &bench, PAPR_INTC_IC_XICS, executors[i]);
        p.options.regions = NULL;
        p.options.region_count = 0;
        start_planned(&bench, &p);
        CHECK(papr_intc_executor(bench.intc) == (int)executors[i]);
        xics_calls_are_served(&bench);
        kill_daemon(&bench);
        MUST(papr_intc_sync(bench.intc, PAPR_INTC_ALL_SOURCES)); /* waits for the next */
        await(&bench.back, 1);
        CHECK(papr_intc_restarts(bench.intc) == 1 && bench.writes == 0);
        p.machine.ic_mode = PAPR_INTC_IC_DUAL;
        FAILS(papr_intc_start(&p.options, &p.callbacks, &intc), ENOTSUP, "no regions");
        stop(&bench);
    }
}

static void claims_are_all_or_none(void)
{
    uint32_t first = 0;
    start(&bench, PAPR_INTC_IC_DUAL, 0);
    MUST(papr_intc_claim_any(bench.intc, 4, 4, 0x1801, 0x1900, PAPR_INTC_CLAIM_MSI, &first));
    CHECK(first == 0x1804);
    FAILS(papr_intc_claim(bench.intc, first + 3, 2, PAPR_INTC_CLAIM_MSI), EBUSY, "");
    MUST(papr_intc_claim(bench.intc, first + 4, 1, PAPR_INTC_CLAIM_MSI));
    MUST(papr_intc_unclaim(bench.intc, first, 5));
    MUST(papr_intc_claim(bench.intc, first + 3, 2, PAPR_INTC_CLAIM_MSI));
    MUST(papr_intc_machine_reset(bench.intc, PAPR_INTC_RESET_FREE_MSIS));
    MUST(papr_intc_claim(bench.intc, first + 3, 2, PAPR_INTC_CLAIM_MSI));
    stop(&bench);
}

static void irqfds_of_both_kinds_reach_the_guest(void)
{
    for (int i = 0; i < 2; i++) {
        eventfd_t count;
        int edge = eventfd(0, EFD_NONBLOCK), trigger = eventfd(0, EFD_NONBLOCK), resample = eventfd(0, EFD_NONBLOCK);
        start(&bench, PAPR_INTC_IC_DUAL, executors[i]);
        choose_xive(&bench);
        route(&bench, LISN, PAPR_INTC_CLAIM_MSI);
        route(&bench, LISN + 1, PAPR_INTC_CLAIM_LSI);
        MUST(papr_intc_add_irqfd(bench.intc, LISN, edge));
        MUST(papr_intc_add_level_irqfd(bench.intc, LISN + 1, 3, trigger, resample));
        for (int round = 0; round < 3; round++) {
            CHECK(eventfd_write(edge, 1) == 0);
            CHECK(take(&bench) == LISN);
            CHECK(eventfd_write(trigger, 1) == 0);
            CHECK(take(&bench) == LISN + 1);
            struct pollfd resampled = {.fd = resample, .events = POLLIN};
            CHECK(poll(&resampled, 1, 10000) == 1 && eventfd_read(resample, &count) == 0);
            CHECK(papr_intc_pending(bench.vcpu[0]) == 0);
            MUST(round == 0 ? papr_intc_demote(bench.intc) : papr_intc_promote(bench.intc));
            CHECK(papr_intc_executor(bench.intc) == (round == 0 ? PAPR_INTC_REMOTE : PAPR_INTC_MAPPED));
        }
        MUST(papr_intc_remove_irqfd(bench.intc, LISN, 0));
        MUST(papr_intc_remove_irqfd(bench.intc, LISN + 1, 3));
        CHECK(eventfd_write(edge, 1) == 0 && eventfd_write(trigger, 1) == 0);
        MUST(papr_intc_sync(bench.intc, PAPR_INTC_ALL_SOURCES));
        CHECK(papr_intc_pending(bench.vcpu[0]) == 0);
        close(edge), close(trigger), close(resample);
        stop(&bench);
    }
}

static void what_comes_while_quiesced_comes_after_the_resume(void)
{
    start(&bench, PAPR_INTC_IC_DUAL, 0);
    choose_xive(&bench);
    route(&bench, LISN, PAPR_INTC_CLAIM_MSI);
    MUST(papr_intc_quiesce(bench.intc, 1000));
    MUST(papr_intc_quiesce(bench.intc, 1000));
    MUST(papr_intc_trigger(bench.intc, LISN));
    FAILS(papr_intc_resume(bench.intc, PAPR_INTC_REMOTE), EINVAL, "only the last resume");
    MUST(papr_intc_resume(bench.intc, 0));
    CHECK(papr_intc_pending(bench.vcpu[0]) == 0);
    MUST(papr_intc_resume(bench.intc, PAPR_INTC_REMOTE));
    CHECK(take(&bench) == LISN && papr_intc_executor(bench.intc) == PAPR_INTC_REMOTE);
    stop(&bench);
}

static void resets_are_as_power_on(void)
{
    papr_intc_buffer fdt;
    uint64_t ring;
    start(&bench, PAPR_INTC_IC_DUAL, 0);
    choose_xive(&bench);
    MUST(papr_intc_tima_load(bench.vcpu[0], 0x20010, 8, &ring));
    CHECK((ring >> 48) == 0x00ff); /* NSR, CPPR */
    MUST(papr_intc_vcpu_reset(bench.vcpu[0]));
    MUST(papr_intc_tima_load(bench.vcpu[0], 0x20010, 8, &ring));
    CHECK((ring >> 48) == 0);
    unsigned kicks = bench.kicks[1];
    MUST(papr_intc_machine_reset(bench.intc, 0));
    CHECK(bench.kicks[1] > kicks);
    MUST(papr_intc_fdt(bench.intc, 0, &fdt));
    CHECK(fdt.size > 40);
    papr_intc_buffer_free(&fdt);
    xics_calls_are_served(&bench); /* XICS again */
    stop(&bench);
}

static void people_can_ask(void)
{
    papr_intc_buffer text;
    start(&bench, PAPR_INTC_IC_DUAL, 0);
    MUST(papr_intc_query(bench.intc, PAPR_INTC_QUERY_STATUS, 0, &text));
    CHECK(text.data[0] == '{' && strlen((char *)text.data) == text.size && strstr((char *)text.data, "generation"));
    papr_intc_buffer_free(&text);
    MUST(papr_intc_query(bench.intc, PAPR_INTC_QUERY_VCPU, 1, &text));
    CHECK(text.data[0] == '{');
    papr_intc_buffer_free(&text);
    stop(&bench);
}

static void an_upgrade_replaces_the_daemon_and_a_bad_one_does_not(void)
{
    static const char *const args[] = {"--log-level", "error", NULL};
    papr_intc_upgraded upgraded = {.size = sizeof(upgraded)};
    start(&bench, PAPR_INTC_IC_DUAL, 0);
    int pid = papr_intc_daemon_pid(bench.intc);
    MUST(papr_intc_upgrade(bench.intc, daemon_path, args, &upgraded));
    CHECK(papr_intc_daemon_pid(bench.intc) != pid && papr_intc_restarts(bench.intc) == 1);
    CHECK(upgraded.away_ns > 0 && upgraded.away_ns < 10000000000 && upgraded.generation == 2);
    pid = papr_intc_daemon_pid(bench.intc);
    FAILS(papr_intc_upgrade(bench.intc, "no-such-daemon", NULL, NULL), ENOENT, "starting the daemon");
    CHECK(papr_intc_daemon_pid(bench.intc) == pid);
    stop(&bench);
}

static void *claims(void *unused)
{
    (void)unused;
    return (void *)(intptr_t)papr_intc_claim(bench.intc, LISN, 1, PAPR_INTC_CLAIM_MSI);
}

static void a_call_that_waits_is_cancelled_and_made_again_or_ends_with_the_machine(void)
{
    pthread_t thread;
    void *result;
    start(&bench, PAPR_INTC_IC_DUAL, 0);
    kill(papr_intc_daemon_pid(bench.intc), SIGSTOP); /* until it is found hung */
    MUST(papr_intc_set_cancelled(bench.intc, 1));
    FAILS(papr_intc_claim(bench.intc, LISN, 1, PAPR_INTC_CLAIM_MSI), ECANCELED, "cancelled");
    MUST(papr_intc_set_cancelled(bench.intc, 0));
    MUST(papr_intc_claim(bench.intc, LISN, 1, PAPR_INTC_CLAIM_MSI));
    await(&bench.back, 1);
    CHECK(papr_intc_restarts(bench.intc) == 1);
    MUST(papr_intc_unclaim(bench.intc, LISN, 1));
    kill(papr_intc_daemon_pid(bench.intc), SIGSTOP);
    CHECK(!pthread_create(&thread, NULL, claims, NULL));
    MUST(papr_intc_shutdown(bench.intc));
    MUST(papr_intc_shutdown(bench.intc));
    CHECK(!pthread_join(thread, &result));
    CHECK((intptr_t)result == -ESHUTDOWN || result == NULL);
    CHECK(papr_intc_daemon_pid(bench.intc) == 0);
    FAILS(papr_intc_disconnect_vcpu(bench.vcpu[1]), ESHUTDOWN, "shut down");
    FAILS(papr_intc_disconnect_vcpu(bench.vcpu[0]), ESHUTDOWN, "shut down");
    papr_intc_free(bench.intc);
    memset(&bench, 0, sizeof(bench));
}

static void somebody_elses_daemon_is_connected_to(void)
{
    char path[64];
    struct plan p;
    snprintf(path, sizeof(path), "daemon-%d.sock", (int)getpid());
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        execl(daemon_path, daemon_path, "--socket-path", path, "--log-level", "error", (char *)NULL);
        _exit(127);
    }
    plan(&p, &bench, PAPR_INTC_IC_DUAL, 0);
    p.options.daemon = NULL;
    p.options.socket = path;
    while (papr_intc_start(&p.options, &p.callbacks, &bench.intc) < 0)
        sched_yield(); /* it does not listen yet */
    CHECK(papr_intc_daemon_pid(bench.intc) == child && papr_intc_adopted(bench.intc) == 0);
    papr_intc_free(bench.intc);
    CHECK(waitpid(child, NULL, 0) == child);
    unlink(path);
    memset(&bench, 0, sizeof(bench));
}

static void messages_go_where_the_vmm_says(void)
{
    int ends[2];
    char text[4096] = "";
    CHECK(pipe(ends) == 0);
    MUST(papr_intc_log(ends[1], "warn"));
    start(&bench, PAPR_INTC_IC_DUAL, 0);
    kill_daemon(&bench);
    await(&bench.back, 1);
    MUST(papr_intc_log(2, "off"));
    close(ends[1]);
    CHECK(read(ends[0], text, sizeof(text) - 1) > 0);
    CHECK(strstr(text, "papr-intc WARN: ") == text && strstr(text, "absent") && strchr(text, '\n'));
    close(ends[0]);
    stop(&bench);
}

MAIN(TEST(xics_needs_no_shared_ram_and_xive_says_that_it_does), TEST(claims_are_all_or_none),
     TEST(irqfds_of_both_kinds_reach_the_guest), TEST(what_comes_while_quiesced_comes_after_the_resume),
     TEST(resets_are_as_power_on), TEST(people_can_ask), TEST(an_upgrade_replaces_the_daemon_and_a_bad_one_does_not),
     TEST(a_call_that_waits_is_cancelled_and_made_again_or_ends_with_the_machine),
     TEST(somebody_elses_daemon_is_connected_to), TEST(messages_go_where_the_vmm_says))
