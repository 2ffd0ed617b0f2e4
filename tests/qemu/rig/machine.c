/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The machine's controller: started when the machine is complete, reset with it, ended with QEMU.
 *
 * When it starts, QEMU has claimed numbers and created vCPUs already (controllers.c remembers them), and no vCPU has
 * run. QEMU resets the machine once before it runs.
 */
#include <stdlib.h>
#include <unistd.h>

#include "rig.h"
#include "shadow.h"

#define SOURCES 0x2000

static void changed(void *opaque, const papr_intc_change *change)
{
    (void)opaque;
    switch (change->what) {
    case PAPR_INTC_LOST:
        say("the daemon is lost: %s", change->text);
        break;
    case PAPR_INTC_BACK:
        say("a daemon serves again after %.1f ms", (double)change->outage_ns / 1e6);
        break;
    default:
        say("change %u: %s", change->what, change->text);
    }
}

/* Threads that read QEMU's memory map have to be known to its RCU. */
static void thread(void *opaque, int begins)
{
    (void)opaque;
    if (begins)
        qemu.rcu_register_thread();
    else
        qemu.rcu_unregister_thread();
}

static int write_queue_entry(void *opaque, uint64_t gpa, uint32_t value)
{
    (void)opaque;
    rig.queue_writes++;
    if (rig.mode == SHADOW)
        return shadow_queue_entry(gpa, value) ? 0 : -1;
    return memory_store_u32(gpa, value) ? 0 : -1;
}

const char *log_level(void)
{
    const char *level = getenv("PAPR_INTC_LOG");
    return level ? level : "warn";
}

static papr_intc_machine describe(void)
{
    papr_intc_machine machine = {
        .size = sizeof machine,
        .ic_mode = rig.kinds == XICS   ? PAPR_INTC_IC_XICS
                   : rig.kinds == XIVE ? PAPR_INTC_IC_XIVE
                                       : PAPR_INTC_IC_DUAL,
        .compat = rig.mode == SHADOW ? PAPR_INTC_COMPAT_QEMU_7_2 : PAPR_INTC_COMPAT_PAPR_1,
        .servers = rig.servers,
        .sources = SOURCES,
        .xics_base = IRQ_BASE,
        .esb_base = rig.esb_base,
        .tima_base = rig.tima_base,
    };
    return machine;
}

static void start(void)
{
    papr_intc_machine machine = describe();
    papr_intc_region region;
    if (memory_region(&region) < 0)
        refuse("the machine's memory-backend must be a memory-backend-memfd with share=on");
    const char *arguments[] = {"--log-level", log_level(), NULL};
    papr_intc_options options = {
        .size = sizeof options,
        .executor = rig.mode == REMOTE ? PAPR_INTC_REMOTE : PAPR_INTC_MAPPED,
        .machine = &machine,
        .regions = &region,
        .region_count = 1,
        .daemon = getenv("PAPR_INTC_DAEMON"),
        .daemon_args = arguments,
        .name = "qemu",
        /* Emulation takes every CPU there is: a daemon that is slow to answer is no daemon that hangs. */
        .answer_ms = 5000,
        .message_ms = 5000,
    };
    papr_intc_callbacks callbacks = {
        .size = sizeof callbacks,
        .kick = line_kick,
        .write_u32 = write_queue_entry,
        .changed = changed,
        .thread = thread,
    };
    papr_intc *intc;
    papr_intc_log(STDERR_FILENO, log_level());
    if (papr_intc_start(&options, &callbacks, &intc) < 0)
        fail("no daemon: %s", papr_intc_last_error());
    rig.intc = intc;
}

/* No vCPU runs. Devices are reset after this: they release numbers, and lower their levels. */
static void reset(void *opaque)
{
    (void)opaque;
    if (!rig.intc)
        return;
    if (papr_intc_machine_reset(rig.intc, 0) < 0)
        fail("machine reset: %s", papr_intc_last_error());
    shadow_note("reset");
    shadow_reset();
    line_sync_all();
}

static void end(struct notifier *notifier, void *data)
{
    (void)notifier;
    (void)data;
    uint64_t restarts = papr_intc_restarts(rig.intc);
    papr_intc_shutdown(rig.intc);
    shadow_end();
    say("served hcalls=%lu loads=%lu stores=%lu events=%lu queue-writes=%lu restarts=%lu differences=%lu",
        rig.hcalls, rig.loads, rig.stores, rig.events, rig.queue_writes, restarts, rig.differences);
}

void machine_begins(void)
{
    qemu.qemu_register_reset(reset, NULL);
}

void machine_complete(void)
{
    static struct notifier ending = {.notify = end};
    if (!rig.kinds || !rig.servers)
        refuse("this is no pseries machine with an interrupt controller of its own");
    /* There CAS is no hypercall of its own (cas.c). */
    if (qemu.object_property_get_bool(qemu.qdev_get_machine(), "x-vof", NULL))
        refuse("a machine with x-vof=on");
    windows_install();
    rtas_install();
    line_install();
    start();
    for (uint32_t lisn = 0; lisn < MAX_LISNS; lisn++)
        if (rig.claimed[lisn] && claim_number(lisn) < 0)
            fail("claim of %x: %s", lisn, papr_intc_last_error());
    for (uint32_t server = 0; server <= rig.last_server; server++)
        if (rig.vcpus[server])
            vcpu_connect(rig.vcpus[server]);
    qemu.qemu_add_exit_notifier(&ending);
    control_install();
    say("papr-intc %s serves %u servers, daemon %d", papr_intc_version(), rig.servers,
        papr_intc_daemon_pid(rig.intc));
}
