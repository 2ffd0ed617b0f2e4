/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
 *
 * What no VMM should pass: NULL, structs of other sizes, numbers out of range.
 */
#include "check.h"

static struct bench bench;
static struct plan p;

static int begins(void)
{
    papr_intc *intc = NULL;
    int result = papr_intc_start(&p.options, &p.callbacks, &intc);
    if (result == 0)
        papr_intc_free(intc);
    return result;
}

static void null_is_invalid_everywhere(void)
{
    papr_intc_buffer buffer;
    uint64_t value, args[9] = {0};
    int64_t ret;
    uint32_t first, cell = 0;
    papr_intc *intc;
    papr_intc_vcpu *vcpu;
    plan(&p, &bench, PAPR_INTC_IC_DUAL, 0);
    FAILS(papr_intc_start(NULL, &p.callbacks, &intc), EINVAL, "papr_intc_options is NULL");
    FAILS(papr_intc_start(&p.options, NULL, &intc), EINVAL, "papr_intc_callbacks is NULL");
    FAILS(papr_intc_start(&p.options, &p.callbacks, NULL), EINVAL, "out is NULL");
    FAILS(papr_intc_log(2, NULL), EINVAL, "level is NULL");
    FAILS(papr_intc_shutdown(NULL), EINVAL, "intc is NULL");
    FAILS(papr_intc_daemon_pid(NULL), EINVAL, "intc is NULL");
    CHECK(papr_intc_restarts(NULL) == 0);
    FAILS(papr_intc_adopted(NULL), EINVAL, "intc is NULL");
    FAILS(papr_intc_machine_reset(NULL, 0), EINVAL, "intc is NULL");
    FAILS(papr_intc_quiesce(NULL, 1), EINVAL, "intc is NULL");
    FAILS(papr_intc_resume(NULL, 0), EINVAL, "intc is NULL");
    FAILS(papr_intc_executor(NULL), EINVAL, "intc is NULL");
    FAILS(papr_intc_promote(NULL), EINVAL, "intc is NULL");
    FAILS(papr_intc_demote(NULL), EINVAL, "intc is NULL");
    FAILS(papr_intc_set_cancelled(NULL, 1), EINVAL, "intc is NULL");
    FAILS(papr_intc_upgrade(NULL, "x", NULL, NULL), EINVAL, "intc is NULL");
    FAILS(papr_intc_query(NULL, 0, 0, &buffer), EINVAL, "intc is NULL");
    FAILS(papr_intc_fdt(NULL, 0, &buffer), EINVAL, "intc is NULL");
    FAILS(papr_intc_claim(NULL, 1, 1, 0), EINVAL, "intc is NULL");
    FAILS(papr_intc_claim_any(NULL, 1, 1, 0, 9, 0, &first), EINVAL, "intc is NULL");
    FAILS(papr_intc_unclaim(NULL, 1, 1), EINVAL, "intc is NULL");
    FAILS(papr_intc_trigger(NULL, 1), EINVAL, "intc is NULL");
    FAILS(papr_intc_set_irq(NULL, 1, 1), EINVAL, "intc is NULL");
    FAILS(papr_intc_sync(NULL, 1), EINVAL, "intc is NULL");
    FAILS(papr_intc_add_irqfd(NULL, 1, 0), EINVAL, "intc is NULL");
    FAILS(papr_intc_add_level_irqfd(NULL, 1, 0, 0, 0), EINVAL, "intc is NULL");
    FAILS(papr_intc_remove_irqfd(NULL, 1, 0), EINVAL, "intc is NULL");
    FAILS(papr_intc_state_header(NULL, &buffer), EINVAL, "intc is NULL");
    FAILS(papr_intc_state_check(NULL, NULL, 0), EINVAL, "intc is NULL");
    FAILS(papr_intc_state_save(NULL, &buffer), EINVAL, "intc is NULL");
    FAILS(papr_intc_state_load(NULL, NULL, 0), EINVAL, "intc is NULL");
    FAILS(papr_intc_state_abort(NULL), EINVAL, "intc is NULL");
    FAILS(papr_intc_dirty_log_start(NULL), EINVAL, "intc is NULL");
    FAILS(papr_intc_dirty_log_stop(NULL), EINVAL, "intc is NULL");
    FAILS(papr_intc_dirty_log_take(NULL, NULL, NULL), EINVAL, "intc is NULL");
    FAILS(papr_intc_connect_vcpu(NULL, 0, &vcpu), EINVAL, "intc is NULL");
    FAILS(papr_intc_vcpu_kick_fd(NULL, 0), EINVAL, "vcpu is NULL");
    FAILS(papr_intc_vcpu_set_cancelled(NULL, 0), EINVAL, "vcpu is NULL");
    FAILS(papr_intc_hcall(NULL, H_EOI, args, &ret), EINVAL, "vcpu is NULL");
    FAILS(papr_intc_rtas(NULL, PAPR_INTC_RTAS_INT_ON, &cell, 1, &cell, 1), EINVAL, "vcpu is NULL");
    FAILS(papr_intc_cas(NULL, NULL, 0, NULL), EINVAL, "vcpu is NULL");
    FAILS(papr_intc_esb_load(NULL, 0, 8, &value), EINVAL, "vcpu is NULL");
    FAILS(papr_intc_esb_store(NULL, 0, 8, 0), EINVAL, "vcpu is NULL");
    FAILS(papr_intc_tima_load(NULL, 0, 8, &value), EINVAL, "vcpu is NULL");
    FAILS(papr_intc_tima_store(NULL, 0, 8, 0), EINVAL, "vcpu is NULL");
    FAILS(papr_intc_pending(NULL), EINVAL, "vcpu is NULL");
    FAILS(papr_intc_sync_line(NULL, NULL, NULL), EINVAL, "vcpu is NULL");
    FAILS(papr_intc_vcpu_reset(NULL), EINVAL, "vcpu is NULL");
    papr_intc_free(NULL);
    papr_intc_buffer_free(NULL);
    MUST(papr_intc_disconnect_vcpu(NULL));

    start_planned(&bench, &p);
    FAILS(papr_intc_connect_vcpu(bench.intc, 0, NULL), EINVAL, "out is NULL");
    FAILS(papr_intc_query(bench.intc, 0, 0, NULL), EINVAL, "text is NULL");
    FAILS(papr_intc_fdt(bench.intc, 0, NULL), EINVAL, "fdt is NULL");
    FAILS(papr_intc_upgrade(bench.intc, NULL, NULL, NULL), EINVAL, "daemon is NULL");
    FAILS(papr_intc_claim_any(bench.intc, 1, 1, 0, 9, 0, NULL), EINVAL, "first is NULL");
    FAILS(papr_intc_state_header(bench.intc, NULL), EINVAL, "head is NULL");
    FAILS(papr_intc_state_save(bench.intc, NULL), EINVAL, "state is NULL");
    FAILS(papr_intc_state_check(bench.intc, NULL, 1), EINVAL, "head is NULL");
    FAILS(papr_intc_state_load(bench.intc, NULL, 1), EINVAL, "state is NULL");
    FAILS(papr_intc_dirty_log_take(bench.intc, NULL, NULL), EINVAL, "page is NULL");
    FAILS(papr_intc_hcall(bench.vcpu[0], H_EOI, NULL, &ret), EINVAL, "args is NULL");
    FAILS(papr_intc_hcall(bench.vcpu[0], H_EOI, args, NULL), EINVAL, "ret is NULL");
    FAILS(papr_intc_rtas(bench.vcpu[0], PAPR_INTC_RTAS_INT_ON, NULL, 1, &cell, 1), EINVAL, "args is NULL");
    FAILS(papr_intc_rtas(bench.vcpu[0], PAPR_INTC_RTAS_INT_ON, &cell, 1, NULL, 1), EINVAL, "rets is NULL");
    FAILS(papr_intc_cas(bench.vcpu[0], NULL, 0, NULL), EINVAL, "papr_intc_cas_reply is NULL");
    FAILS(papr_intc_esb_load(bench.vcpu[0], 0, 8, NULL), EINVAL, "value is NULL");
    FAILS(papr_intc_tima_load(bench.vcpu[0], 0, 8, NULL), EINVAL, "value is NULL");
    FAILS(papr_intc_sync_line(bench.vcpu[0], NULL, NULL), EINVAL, "set is NULL");
    stop(&bench);
}

static void structs_of_other_sizes_are_understood_or_refused(void)
{
    struct {
        papr_intc_machine known;
        uint64_t later;
    } machine;
    struct {
        papr_intc_cas_reply known;
        uint64_t later;
    } reply;
    plan(&p, &bench, PAPR_INTC_IC_DUAL, 0);
    p.options.size = 0;
    FAILS(begins(), EINVAL, "papr_intc_options.size is 0");
    p.options.size = sizeof(p.options) - 1;
    FAILS(begins(), EINVAL, "papr_intc_options.size");
    p.options.size = 1 << 30;
    FAILS(begins(), EINVAL, "papr_intc_options.size");
    p.options.size = sizeof(p.options);
    p.callbacks.size = 8;
    FAILS(begins(), EINVAL, "papr_intc_callbacks.size is 8");
    p.callbacks.size = sizeof(p.callbacks);

    machine.known = p.machine;
    machine.known.size = sizeof(machine);
    machine.later = 1;
    p.options.machine = &machine.known;
    FAILS(begins(), EINVAL, "papr_intc_machine has fields that this library does not know");
    machine.later = 0;
    start_planned(&bench, &p);

    memset(&reply, 0x55, sizeof(reply));
    reply.known.size = 4;
    FAILS(papr_intc_cas(bench.vcpu[0], NULL, 0, &reply.known), EINVAL, "papr_intc_cas_reply.size is 4");
    CHECK(reply.known.byte_23 == 0x55555555);
    reply.known.size = sizeof(reply);
    MUST(papr_intc_cas(bench.vcpu[0], NULL, 0, &reply.known));
    CHECK(reply.known.size == sizeof(reply) && reply.later == 0x5555555555555555);
    free(reply.known.fdt.data); /* free() will do */
    stop(&bench);
}

static void numbers_out_of_range_are_refused(void)
{
    uint64_t value;
    uint32_t cells[17] = {0};
    plan(&p, &bench, 9, 0);
    FAILS(begins(), EINVAL, "9 is no ic_mode");
    plan(&p, &bench, PAPR_INTC_IC_DUAL, 7);
    FAILS(begins(), EINVAL, "7 is no executor");
    plan(&p, &bench, PAPR_INTC_IC_DUAL, 0);
    p.machine.compat = 5;
    FAILS(begins(), EINVAL, "5 is no compat");
    p.machine.compat = 0;
    p.machine.flags = 0x80;
    FAILS(begins(), EINVAL, "flags");
    p.machine.flags = 0;
    p.machine.hv_prio = 300;
    FAILS(begins(), EINVAL, "hv_prio");
    p.machine.hv_prio = 0;
    p.machine.servers = 0;
    FAILS(begins(), EINVAL, "out of range");
    p.machine.servers = 2;
    p.callbacks.write_u32 = NULL;
    FAILS(begins(), EINVAL, "write_u32 is NULL");
    p.callbacks.write_u32 = bench_write;
    p.options.socket = "both";
    FAILS(begins(), EINVAL, "either daemon or socket");
    p.options.daemon = p.options.socket = NULL;
    FAILS(begins(), EINVAL, "either daemon or socket");
    p.options.daemon = "\xff\xfe";
    FAILS(begins(), EINVAL, "daemon is not UTF-8");
    p.options.daemon = "no-such-daemon";
    FAILS(begins(), ENOENT, "starting the daemon");
    p.options.daemon = daemon_path;
    p.region.fd = -1;
    FAILS(begins(), EBADF, "the region's fd is -1");
    p.region.fd = 9999;
    FAILS(begins(), EBADF, "9999");
    p.region.fd = bench.ram_fd;
    p.region.gpa = UINT64_MAX - 1;
    FAILS(begins(), EINVAL, "the region");
    p.region.gpa = 0;
    p.options.regions = NULL;
    FAILS(begins(), EINVAL, "regions is NULL");
    p.options.regions = &p.region;

    start_planned(&bench, &p);
    papr_intc_vcpu *vcpu = bench.vcpu[0];
    FAILS(papr_intc_log(-1, "warn"), EBADF, "fd is -1");
    FAILS(papr_intc_log(2, "loud"), EINVAL, "loud is no log level");
    FAILS(papr_intc_connect_vcpu(bench.intc, 2, &vcpu), EINVAL, "server 2");
    FAILS(papr_intc_connect_vcpu(bench.intc, 0, &vcpu), EINVAL, "server 0 is connected");
    FAILS(papr_intc_esb_load(vcpu, 0, 3, &value), EINVAL, "3 bytes");
    FAILS(papr_intc_tima_store(vcpu, 0, 16, 0), EINVAL, "16 bytes");
    FAILS(papr_intc_rtas(vcpu, 9, cells, 1, cells, 1), EINVAL, "9 is no RTAS call");
    FAILS(papr_intc_rtas(vcpu, PAPR_INTC_RTAS_INT_ON, cells, 17, cells, 1), EINVAL, "16 cells");
    FAILS(papr_intc_trigger(bench.intc, 0x2000), EINVAL, "LISN 0x2000");
    FAILS(papr_intc_claim(bench.intc, UINT32_MAX, 1, 0), EINVAL, "0xffffffff");
    FAILS(papr_intc_machine_reset(bench.intc, 2), EINVAL, "unknown flags");
    FAILS(papr_intc_resume(bench.intc, 0), EINVAL, "resume without quiesce");
    FAILS(papr_intc_resume(bench.intc, 3), EINVAL, "no executor");
    FAILS(papr_intc_add_irqfd(bench.intc, LISN, -1), EBADF, "fd is -1");
    FAILS(papr_intc_vcpu_kick_fd(vcpu, 9999), EBADF, "9999");
    FAILS(papr_intc_remove_irqfd(bench.intc, LISN, 0), EINVAL, "no irqfd");
    FAILS(papr_intc_state_save(bench.intc, &(papr_intc_buffer){0}), EBUSY, "");
    FAILS(papr_intc_state_load(bench.intc, (const uint8_t *)"x", 1), EBUSY, "");
    stop(&bench);
}

static void *fails_elsewhere(void *unused)
{
    (void)unused;
    CHECK(!*papr_intc_last_error());
    FAILS(papr_intc_pending(NULL), EINVAL, "vcpu");
    return NULL;
}

static void the_last_error_is_the_threads_own(void)
{
    pthread_t thread;
    FAILS(papr_intc_shutdown(NULL), EINVAL, "intc");
    CHECK(pthread_create(&thread, NULL, fails_elsewhere, NULL) == 0 && pthread_join(thread, NULL) == 0);
    CHECK(strstr(papr_intc_last_error(), "intc"));
    CHECK(strchr(papr_intc_version(), '.'));
}

MAIN(TEST(null_is_invalid_everywhere), TEST(structs_of_other_sizes_are_understood_or_refused),
     TEST(numbers_out_of_range_are_refused), TEST(the_last_error_is_the_threads_own))
