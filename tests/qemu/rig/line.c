/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The external-interrupt inputs of the vCPUs, and the big lock.
 *
 * An input is set under the big lock, in one of two ways. A thread that holds it (a vCPU at its hypercall, a device at
 * its interrupt) is kicked for a line within its own call, and sets the input there and then: nothing
 * lies between an interrupt and its vCPU. Any other thread (papr-intc's own; a vCPU that waits for the daemon) leaves
 * a mark and wakes the main loop, which sets the inputs that are marked. Whoever takes the lock back after a wait looks at the
 * marks as well.
 *
 * The lock is given up around a vCPU's wait for the daemon. The vCPU is inside its own hypercall or access then, so it
 * counts as running: a machine reset, an unplugging or a stop of the machine waits until it has left, and CAS
 * is refused. What else may happen meanwhile (device interrupts, other vCPUs' calls) papr-intc orders itself.
 * Calls that are not a vCPU's (claims, plugging, reset) and CAS keep the lock while they wait: the daemon, and a
 * restart of it, need nothing of QEMU, so the wait ends.
 */
#include <sys/eventfd.h>
#include <unistd.h>

#include "rig.h"
#include "shadow.h"

#define WORD_BITS 64

static int wake_fd = -1;
static _Atomic uint64_t marks[MAX_SERVERS / WORD_BITS];
static _Atomic bool marked;

static void set_input(void *opaque, int level)
{
    struct vcpu *vcpu = opaque;
    if (vcpu->level == level)
        return;
    vcpu->level = level;
    if (rig.mode != SHADOW)
        qemu.qemu_set_irq(vcpu->input, level);
}

void line_sync(struct vcpu *vcpu)
{
    if (vcpu->handle)
        papr_intc_sync_line(vcpu->handle, set_input, vcpu);
}

static struct vcpu *known(uint32_t server)
{
    return server < MAX_SERVERS ? rig.vcpus[server] : NULL;
}

void line_sync_all(void)
{
    for (uint32_t server = 0; server <= rig.last_server; server++)
        if (known(server))
            line_sync(known(server));
}

/* Sets the inputs that are marked. Under the big lock. */
static void set_marked(void)
{
    if (!atomic_exchange(&marked, false))
        return;
    for (uint32_t word = 0; word <= rig.last_server / WORD_BITS; word++) {
        uint64_t servers = atomic_exchange(&marks[word], 0);
        while (servers) {
            uint32_t server = word * WORD_BITS + (uint32_t)__builtin_ctzll(servers);
            servers &= servers - 1;
            if (known(server))
                line_sync(known(server));
        }
    }
}

void lock_drop(void)
{
    qemu.qemu_mutex_unlock_iothread();
}

void lock_take(void)
{
    qemu.qemu_mutex_lock_iothread_impl(__FILE__, __LINE__);
    set_marked();
}

void line_kick(void *opaque, uint32_t server)
{
    (void)opaque;
    if (server >= MAX_SERVERS)
        return;
    if (qemu.qemu_mutex_iothread_locked()) {
        if (known(server))
            line_sync(known(server));
        return;
    }
    atomic_fetch_or(&marks[server / WORD_BITS], UINT64_C(1) << server % WORD_BITS);
    atomic_store(&marked, true);
    uint64_t one = 1;
    if (write(wake_fd, &one, sizeof one) < 0)
        say("the main loop was not woken");
}

static void woken(void *opaque)
{
    (void)opaque;
    uint64_t count;
    if (read(wake_fd, &count, sizeof count) == sizeof count)
        set_marked();
}

void line_install(void)
{
    wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (wake_fd < 0)
        fail("no eventfd");
    qemu.qemu_set_fd_handler(wake_fd, woken, NULL, NULL);
}

/*
 * Shadow mode: QEMU's controllers set the input, and the rig looks on. An input is an object of QEMU (IRQState): a header
 * of 40 bytes, then its handler and the vCPU that it is given.
 */
struct input {
    uint8_t object[40];
    void (*handler)(void *opaque, int number, int level);
    void *opaque;
    int number;
};

static void (*handler)(void *opaque, int number, int level);

static void look_on(void *opaque, int number, int level)
{
    struct vcpu *vcpu = vcpu_of(opaque);
    if (vcpu && vcpu->theirs != !!level) {
        vcpu->theirs = !!level;
        shadow_line(vcpu->server, !!level);
    }
    handler(opaque, number, level);
}

void line_watch(struct vcpu *vcpu)
{
    struct input *input = vcpu->input;
    if (rig.mode != SHADOW)
        return;
    if (input->opaque != vcpu->cpu || input->number != 0 || !in_text((uintptr_t)input->handler) ||
        (handler && input->handler != handler))
        refuse("an input of vCPU %u is not as expected", vcpu->server);
    handler = input->handler;
    input->handler = look_on;
}
