/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
 *
 * papr-intc: the interrupt controllers (XICS and XIVE) of an sPAPR guest in a process of their own, the
 * daemon. A VMM links this library: it starts daemons, keeps one alive, and in mapped mode runs the data plane
 * itself.
 *
 * Made by cbindgen from the Rust sources (frontend/capi/src): change those.
 *
 * Errors: functions that return an int return 0, or what their comment says, or a negative errno; then
 * papr_intc_last_error() says in words what is wrong. Everywhere:
 *   -EINVAL      a pointer that must not be NULL is, a struct's size is wrong, a number is out of range
 *   -ESHUTDOWN   after papr_intc_shutdown
 *   -ECANCELED   cancelled by the VMM (papr_intc_set_cancelled): the same call, made again, goes on
 *   -ENODEV      no daemon could be started any more; what needs none goes on
 *   -EDEADLK     called from write_u32; or on the front-end's watch thread, and a daemon is needed
 *   -EIO         a defect of this library: a panic, which is stopped here. Shut the controller down
 * and what the daemon or the system says of the request itself.
 *
 * Daemons that are away: a call that needs one waits for the next, and runs once. In mapped mode that is only
 * what configures: claims, CAS, resets, H_INT_* of configuration, state. What runs without: papr_intc_trigger,
 * papr_intc_set_irq, loads and stores, the calls that accept and end interrupts, papr_intc_pending, irqfds.
 *
 * Threads: every function may be called from any thread, those with a vCPU by one thread at a time for each
 * vCPU, with the exceptions that papr_intc_vcpu names. Callbacks are called with no lock of this library held:
 * they may call any function but papr_intc_free. On which threads, see papr_intc_callbacks. The exception is
 * write_u32, which is called in the middle of a step and must only store.
 *
 * A VMM with one big lock can hold it over any call that needs no daemon, and over the others if no callback
 * takes it: a callback that has to take it on a thread of the front-end's own would wait for a caller that
 * waits for that thread. Such a VMM leaves kick empty and has eventfds written (papr_intc_vcpu_kick_fd) which
 * its main loop reads, where it calls papr_intc_sync_line; its write_u32 takes no lock; thread registers the
 * front-end's threads where that is needed.
 *
 * Structs that begin with size grow in later versions: set size to sizeof, and everything that is not used to
 * zero, which is the default. A shorter one, of an older header, gets the defaults. A longer one is refused
 * (-EINVAL) if it has something other than zero in what this library does not know.
 *
 * What the VMM passes (strings, arrays, structs, descriptors) is copied or duplicated before the function
 * returns. What it is handed in a papr_intc_buffer is freed by papr_intc_buffer_free, or free(buffer.data);
 * nothing has to be freed if the function failed.
 *
 * Pages that are written while the guest migrates: those of write_u32 are marked by the VMM, always; the
 * daemon's are in the log (papr_intc_dirty_log_start).
 */

#ifndef PAPR_INTC_H
#define PAPR_INTC_H

#include <stddef.h>
#include <stdint.h>

/** Version of this interface. Functions and fields are added; none changes while the number is the same. */
#define PAPR_INTC_API_VERSION 1

/** ic_mode: XICS only. */
#define PAPR_INTC_IC_XICS 1

/** ic_mode: XIVE only. */
#define PAPR_INTC_IC_XIVE 2

/** ic_mode: both; the guest chooses at CAS, XICS before it. */
#define PAPR_INTC_IC_DUAL 3

/** compat: PAPR, where QEMU 7.2 differs from it to the guest's disadvantage. The default. */
#define PAPR_INTC_COMPAT_PAPR_1 1

/** compat: QEMU 7.2 to the letter. */
#define PAPR_INTC_COMPAT_QEMU_7_2 2

/** Mapped mode: the VMM's threads run the data plane on shared pages. */
#define PAPR_INTC_MAPPED 1

/** Remote mode: the daemon runs it, every call is a message. */
#define PAPR_INTC_REMOTE 2

/** Flag of a machine: offer StoreEOI to the guest (never in QEMU's pseries). */
#define PAPR_INTC_MACHINE_STORE_EOI 1

/** Active controller: XICS. */
#define PAPR_INTC_MODE_XICS 1

/** Active controller: XIVE. */
#define PAPR_INTC_MODE_XIVE 2

/** ibm,set-xive: irq, server, priority; 1 result. */
#define PAPR_INTC_RTAS_SET_XIVE 1

/** ibm,get-xive: irq; 3 results: status, server, priority. */
#define PAPR_INTC_RTAS_GET_XIVE 2

/** ibm,int-on: irq; 1 result. */
#define PAPR_INTC_RTAS_INT_ON 3

/** ibm,int-off: irq; 1 result. */
#define PAPR_INTC_RTAS_INT_OFF 4

/** Flag of a claim: level-sensitive. */
#define PAPR_INTC_CLAIM_LSI 1

/** Flag of a claim: dynamic, a machine reset may release it. */
#define PAPR_INTC_CLAIM_MSI 2

/** Flag of a machine reset: release what was claimed with PAPR_INTC_CLAIM_MSI. */
#define PAPR_INTC_RESET_FREE_MSIS 1

/** For papr_intc_sync: every source. */
#define PAPR_INTC_ALL_SOURCES 4294967295

/** For a time limit in milliseconds: none. */
#define PAPR_INTC_NEVER 4294967295

/** Query: one JSON object: state, generation, uptime, counters. */
#define PAPR_INTC_QUERY_STATUS 0

/** Query: text, as a monitor's "info pic". */
#define PAPR_INTC_QUERY_PIC 1

/** Query: text, a line for each claimed source. */
#define PAPR_INTC_QUERY_SOURCES 2

/** Query: one JSON object, the vCPU whose server number is the argument. */
#define PAPR_INTC_QUERY_VCPU 3

/** Change: there is no daemon. In mapped mode interrupts go on; calls that configure wait. */
#define PAPR_INTC_LOST 1

/** Change: a daemon serves again. */
#define PAPR_INTC_BACK 2

/** Change: remote mode from now on, because the daemon wants it. */
#define PAPR_INTC_DEMOTED 3

/** Change: mapped mode again. */
#define PAPR_INTC_PROMOTED 4

/** Change: no daemon could be started in six attempts; calls that need one return -ENODEV from now on. */
#define PAPR_INTC_GAVE_UP 5

/** Why a daemon was lost: its process ended. */
#define PAPR_INTC_REASON_ENDED 1

/** Why a daemon was lost: it closed its socket. */
#define PAPR_INTC_REASON_HUNG_UP 2

/** Why a daemon was lost: it sent what is no reply. */
#define PAPR_INTC_REASON_BROKEN 3

/** Why a daemon was lost: it did not answer in time. */
#define PAPR_INTC_REASON_SILENT 4

/** Why a daemon was lost: papr_intc_upgrade replaced it. */
#define PAPR_INTC_REASON_REPLACED 5

/** One guest's interrupt controller. Every function may be called from any thread. */
typedef struct papr_intc papr_intc;

/**
 * One vCPU. Its calls are made by one thread at a time; papr_intc_pending, papr_intc_sync_line and
 * papr_intc_vcpu_set_cancelled by any.
 */
typedef struct papr_intc_vcpu papr_intc_vcpu;

/**
 * The machine, the same for the life of the guest. Zero means the default of QEMU's pseries machine, where one
 * is named.
 */
typedef struct {
    /** sizeof(papr_intc_machine). */
    uint32_t size;
    /** PAPR_INTC_IC_*. No default. */
    uint32_t ic_mode;
    /** PAPR_INTC_COMPAT_*; 0: PAPR_INTC_COMPAT_PAPR_1. */
    uint32_t compat;
    /** Server numbers (vCPUs) are 0 to servers - 1. No default. */
    uint32_t servers;
    /** LISNs are 0 to sources - 1; 0: 0x2000. */
    uint32_t sources;
    /** XICS serves xics_base to sources - 1, LISNs 0 to servers - 1 are XIVE's IPIs; 0: 0x1000. */
    uint32_t xics_base;
    /** Phandle of the interrupt controller's device-tree node; 0: 0x1111. */
    uint32_t phandle;
    /** First priority reserved to the hypervisor, 1 to 7; 0: 7. */
    uint32_t hv_prio;
    /** PAPR_INTC_MACHINE_*. */
    uint32_t flags;
    /** Zero. */
    uint32_t reserved;
    /** Guest physical address of the source ESB pages; 0: 0x6010000000000. */
    uint64_t esb_base;
    /** Guest physical address that H_INT_GET_QUEUE_INFO hands out; 0: after the ESB pages. */
    uint64_t end_base;
    /** Guest physical address of the four TIMA pages; 0: 0x6030203180000. */
    uint64_t tima_base;
} papr_intc_machine;

/** A region of guest RAM. */
typedef struct {
    /** Guest physical address. */
    uint64_t gpa;
    /** Bytes. */
    uint64_t size;
    /** A file that the daemon can map shared: a memfd, or a file on hugetlbfs or tmpfs. It is duplicated. */
    int fd;
    /** Where the region begins in the file, in bytes. */
    uint64_t offset;
    /** Where the VMM has it mapped. Told to the daemon as vhost-user wants it, and not used; may be NULL. */
    void *host;
} papr_intc_region;

/** What papr_intc_start is asked for. Strings are UTF-8 and are copied. */
typedef struct {
    /** sizeof(papr_intc_options). */
    uint32_t size;
    /** PAPR_INTC_MAPPED or PAPR_INTC_REMOTE; 0: mapped. */
    uint32_t executor;
    /** The machine. */
    const papr_intc_machine *machine;
    /**
     * Guest RAM that the daemon maps: all in which the guest can have event queues. None (NULL): no RAM is
     * shared; then the machine must be XICS only, or papr_intc_start returns -ENOTSUP: also in mapped mode
     * the daemon writes queue entries of XIVE, when it finishes what a predecessor began.
     */
    const papr_intc_region *regions;
    /** How many. */
    size_t region_count;
    /** Path of the daemon, which is spawned, and spawned again when it ends; or NULL, see socket. */
    const char *daemon;
    /** Further arguments for it, the last followed by NULL; may be NULL. */
    const char *const *daemon_args;
    /**
     * If daemon is NULL: path of the socket on which somebody else's daemons listen. One whose
     * connection was lost is killed before the next is connected to, so the VMM must be allowed to.
     */
    const char *socket;
    /** Name of the VMM or guest, for the daemon's log; NULL: "guest". */
    const char *name;
    /**
     * A caller that waits longer than this for a reply makes the front-end ask whether the daemon still runs.
     * In milliseconds; 0: 200.
     */
    uint32_t patience_ms;
    /** The answer to that may take so long. In milliseconds; 0: 250. */
    uint32_t answer_ms;
    /** In remote mode the daemon is asked this often without a reason, at most 65000. In milliseconds; 0: 1000. */
    uint32_t idle_ms;
    /** One message of a handshake may take so long. In milliseconds; 0: 1000. */
    uint32_t message_ms;
    /**
     * While there is no daemon, the guest's H_INT_* calls return H_BUSY to it after this time, and it makes
     * them again. In milliseconds; 0: they wait.
     */
    uint32_t busy_after_ms;
    /** Zero. */
    uint32_t reserved;
} papr_intc_options;

/** A change of the daemon. */
typedef struct {
    /** sizeof(papr_intc_change) of the library: how much of this struct there is. */
    uint32_t size;
    /** PAPR_INTC_LOST, PAPR_INTC_BACK, ...; there may be more in later versions. */
    uint32_t what;
    /** PAPR_INTC_LOST: PAPR_INTC_REASON_*. */
    uint32_t reason;
    /** PAPR_INTC_BACK: operations of its predecessor that it finished. */
    uint32_t redone;
    /** PAPR_INTC_BACK: lines that were up and were signalled again. */
    uint32_t resignalled;
    /** PAPR_INTC_BACK: sources whose last event may have been under way. */
    uint32_t in_doubt;
    /** PAPR_INTC_BACK: how long there was none, in nanoseconds. */
    uint64_t outage_ns;
    /** PAPR_INTC_BACK: generation of the shared memory. */
    uint64_t generation;
    /**
     * For people: how the process ended, or why none could be started. Never NULL; gone when the callback
     * returns.
     */
    const char *text;
} papr_intc_change;

/**
 * The VMM's functions. They stay callable, with opaque, until papr_intc_free has returned.
 *
 * Two threads are the front-end's own: "watch" (daemons that go and come) and "io" (irqfds, and the eventfds by
 * which the daemon kicks). All other calls of these functions are made by threads of the VMM, inside a function of
 * this header.
 *
 * All but write_u32 are called with no lock of the front-end held: they may call any function of this header but
 * papr_intc_free. On the watch thread, which brings daemons back, functions that may wait for one return -EDEADLK.
 */
typedef struct {
    /** sizeof(papr_intc_callbacks). */
    uint32_t size;
    /** Zero. */
    uint32_t reserved;
    /** Given to each of them. */
    void *opaque;
    /**
     * The line of the vCPU may have changed: make its thread leave the guest or its halt, and look at
     * papr_intc_pending. Must not block (loads, stores and hypercalls wait while the machine is quiesced, here too).
     * May be NULL if every vCPU has an eventfd (papr_intc_vcpu_kick_fd).
     * Threads: watch, io, any that is inside a function of this header.
     */
    void (*kick)(void *opaque, uint32_t server);
    /**
     * Store value big-endian, in one access, at the guest physical address gpa (a multiple of 4), mark its page
     * dirty for a migration, and return 0; return another number if there is no RAM, and store nothing.
     * Mandatory. Threads: io, any that is inside a function of this header.
     *
     * This one is called in the middle of a step that other threads wait for: it must not block (take no lock
     * that is held over functions of this header, such as a VMM's big lock), and functions of this header that
     * are called from it return -EDEADLK.
     */
    int (*write_u32)(void *opaque, uint64_t gpa, uint32_t value);
    /** The daemon was lost, is back, ... May be NULL. Thread: watch; during papr_intc_start the caller's. */
    void (*changed)(void *opaque, const papr_intc_change *change);
    /** The guest's time base (512 MHz), for H_XIRR_X. NULL: from the host's monotonic clock. Thread: the vCPU's. */
    uint64_t (*time_base)(void *opaque, uint32_t server);
    /**
     * A thread of the front-end's own begins (1), before anything else is called on it, or ends (0). For a
     * VMM whose threads have to be registered somewhere, as QEMU's with RCU. May be NULL.
     */
    void (*thread)(void *opaque, int begins);
} papr_intc_callbacks;

/** Bytes that belong to the VMM: to be freed by papr_intc_buffer_free or by free(data). */
typedef struct {
    /** The bytes, and a zero after the last, so that a text is a string. NULL after papr_intc_buffer_free. */
    uint8_t *data;
    /** How many, without that zero. */
    size_t size;
} papr_intc_buffer;

/** What the guest's choice at CAS led to. */
typedef struct {
    /** In: sizeof(papr_intc_cas_reply). */
    uint32_t size;
    /** Byte 23 of the negotiated option vector 5. */
    uint32_t byte_23;
    /** PAPR_INTC_MODE_* from now on. */
    uint32_t mode;
    /** Zero. */
    uint32_t reserved;
    /** H_SUCCESS (0), or H_PARAMETER (-4) for a mode that the machine does not have; then nothing changed. */
    int64_t ret;
    /** Device tree of the mode, as a flattened blob. To be freed. */
    papr_intc_buffer fdt;
} papr_intc_cas_reply;

/** A planned upgrade that went well. */
typedef struct {
    /** In: sizeof(papr_intc_upgraded). */
    uint32_t size;
    /** Zero. */
    uint32_t reserved;
    /** From the old daemon's goodbye to the new one's open channels, in nanoseconds. */
    uint64_t away_ns;
    /** Generation of the shared memory. */
    uint64_t generation;
} papr_intc_upgraded;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Starts a daemon, or connects to one, and shakes hands; *out is the controller. The callbacks may be called
 * before this returns. Fails with whatever keeps the first daemon from serving.
 */
int papr_intc_start(const papr_intc_options *options,
                    const papr_intc_callbacks *callbacks,
                    papr_intc **out);

/**
 * Ends the daemon and the front-end's threads: when this returns they call no callback any more (unless it was called
 * on one of them). Every call that waits returns -ESHUTDOWN; what can be done without a daemon still works. Idempotent.
 * At the end of a VMM: this, then papr_intc_disconnect_vcpu for each vCPU, then papr_intc_free.
 */
int papr_intc_shutdown(const papr_intc *intc);

/**
 * Shuts down and frees. No other thread is inside a function with this controller or will call one, and all
 * vCPUs are disconnected. Afterwards no callback is called. Not to be called from a callback. NULL is allowed.
 */
void papr_intc_free(papr_intc *intc);

/**
 * Why the last function of this header that failed on this thread did so: one line, UTF-8. Empty if
 * none has failed. Valid until the next one fails on this thread.
 */
const char *papr_intc_last_error(void);

/** Version of the library, for people. */
const char *papr_intc_version(void);

/**
 * Messages of the front-end, of all controllers of this process, go to fd as lines from now on; without this call
 * they go nowhere. level: "off", "error", "warn", "info", "debug" or "trace". fd is duplicated. -EEXIST: a Rust program
 * that links this library has a logger of its own.
 */
int papr_intc_log(int fd,
                  const char *level);

/** Connects the vCPU with this server number; *out is freed by papr_intc_disconnect_vcpu. */
int papr_intc_connect_vcpu(const papr_intc *intc, uint32_t server, papr_intc_vcpu **out);

/**
 * The vCPU is unplugged, or the VMM ends. Frees the vCPU in any case, also if an errno is returned (after
 * papr_intc_shutdown: -ESHUTDOWN). No other thread is inside a function with it. NULL is allowed.
 */
int papr_intc_disconnect_vcpu(papr_intc_vcpu *vcpu);

/**
 * From now on every kick of this vCPU adds one to the eventfd fd, before kick is called (which may be NULL);
 * -1: no more. fd is duplicated, should be non-blocking, and may be the same for several vCPUs. For a VMM that
 * looks at lines in its main loop.
 */
int papr_intc_vcpu_kick_fd(const papr_intc_vcpu *vcpu,
                           int fd);

/** As papr_intc_set_cancelled, for the calls of this vCPU. */
int papr_intc_vcpu_set_cancelled(const papr_intc_vcpu *vcpu, int cancelled);

/**
 * A hypercall: opcode is r3; args are nine, r4 to r12, and are changed as the call says; *ret is the new r3. The VMM has
 * checked that the guest was not in problem state. Returns 1: done; 0: this opcode is no interrupt call, nothing
 * was changed.
 */
int papr_intc_hcall(const papr_intc_vcpu *vcpu,
                    uint64_t opcode,
                    uint64_t *args,
                    int64_t *ret);

/**
 * An RTAS call (PAPR_INTC_RTAS_*) with nargs argument cells and room for nret results, at most 16 each, in
 * host byte order. Returns how many of rets were set (write no more to the guest); the first is the status.
 */
int papr_intc_rtas(const papr_intc_vcpu *vcpu,
                   uint32_t rtas,
                   const uint32_t *args,
                   uint32_t nargs,
                   uint32_t *rets,
                   uint32_t nret);

/**
 * Client-architecture-support: ov5 is option vector 5 as in the guest's table (its length byte, then that many
 * bytes + 1), NULL and 0 if the guest gave none. The VMM has checked that no other vCPU runs. reply->size is
 * set by the VMM; reply->fdt is to be freed.
 */
int papr_intc_cas(const papr_intc_vcpu *vcpu,
                  const uint8_t *ov5,
                  size_t len,
                  papr_intc_cas_reply *reply);

/**
 * A load of the guest, of size 1, 2, 4 or 8 bytes, at offset from the machine's esb_base. *value is the number that
 * a big-endian guest loads.
 */
int papr_intc_esb_load(const papr_intc_vcpu *vcpu,
                       uint64_t offset,
                       uint32_t size,
                       uint64_t *value);

/** A store of the guest at offset from the machine's esb_base; otherwise as papr_intc_esb_load. */
int papr_intc_esb_store(const papr_intc_vcpu *vcpu, uint64_t offset, uint32_t size, uint64_t value);

/** A load of this vCPU at offset from the machine's tima_base; otherwise as papr_intc_esb_load. */
int papr_intc_tima_load(const papr_intc_vcpu *vcpu,
                        uint64_t offset,
                        uint32_t size,
                        uint64_t *value);

/** A store of this vCPU at offset from the machine's tima_base; otherwise as papr_intc_esb_load. */
int papr_intc_tima_store(const papr_intc_vcpu *vcpu,
                         uint64_t offset,
                         uint32_t size,
                         uint64_t value);

/** The level of the vCPU's external-interrupt line: 1 or 0. Never waits for an absent daemon. */
int papr_intc_pending(const papr_intc_vcpu *vcpu);

/**
 * Calls set with the line's level, and again while it is not what was set last. If another thread is doing so at
 * present for this vCPU, that one goes on with it and this one returns at once: when all of them have returned, the
 * last level set is the line's. set is called with no lock held and may call any function of this header.
 */
int papr_intc_sync_line(const papr_intc_vcpu *vcpu,
                        void (*set)(void *opaque, int level),
                        void *opaque);

/** The vCPU's part of both controllers as after power-on. */
int papr_intc_vcpu_reset(const papr_intc_vcpu *vcpu);

/**
 * Claims the LISNs first to first + count - 1 in both controllers, all or none. flags: PAPR_INTC_CLAIM_*.
 * -EBUSY or another errno of the daemon if one is not free.
 */
int papr_intc_claim(const papr_intc *intc,
                    uint32_t first,
                    uint32_t count,
                    uint32_t flags);

/**
 * Claims count LISNs that are free, the first a multiple of align (a power of two) and all within low to high - 1.
 * *first is the first of them.
 */
int papr_intc_claim_any(const papr_intc *intc,
                        uint32_t count,
                        uint32_t align,
                        uint32_t low,
                        uint32_t high,
                        uint32_t flags,
                        uint32_t *first);

/** Releases LISNs in both controllers, all or none. */
int papr_intc_unclaim(const papr_intc *intc, uint32_t first, uint32_t count);

/** One event of an MSI. In mapped mode no daemon is needed. */
int papr_intc_trigger(const papr_intc *intc, uint32_t lisn);

/**
 * The level (0 or not) of the input of an LSI that the VMM drives. Devices that share it are OR-ed by the VMM, or
 * have a level irqfd each.
 */
int papr_intc_set_irq(const papr_intc *intc,
                      uint32_t lisn,
                      int level);

/** Returns when every event of the source (PAPR_INTC_ALL_SOURCES: of all) accepted before is in its queue. */
int papr_intc_sync(const papr_intc *intc,
                   uint32_t lisn);

/**
 * From now on every count of the eventfd fd triggers the source. Replaces what the source had. fd is duplicated; it
 * should be non-blocking.
 */
int papr_intc_add_irqfd(const papr_intc *intc,
                        uint32_t lisn,
                        int fd);

/**
 * From now on a count of the eventfd trigger raises the level of an LSI. It falls when the guest ends the
 * interrupt; then the eventfd resample is written, and a device that still has a reason writes trigger
 * again. Several inputs (any numbers) and papr_intc_set_irq share an LSI: it is asserted while one of them
 * is. Both are duplicated.
 */
int papr_intc_add_level_irqfd(const papr_intc *intc,
                              uint32_t lisn,
                              uint32_t input,
                              int trigger,
                              int resample);

/**
 * The irqfd of the source, or of one input of an LSI (0 for an edge), is not read any more, and none of its
 * counts is on its way. A level that it had raised stays until the guest has ended the interrupt.
 */
int papr_intc_remove_irqfd(const papr_intc *intc,
                           uint32_t lisn,
                           uint32_t input);

/** Pid of the present daemon; 0 while there is none. */
int papr_intc_daemon_pid(const papr_intc *intc);

/** How many daemons after the first have served. */
uint64_t papr_intc_restarts(const papr_intc *intc);

/**
 * 1: the daemon held the memory of an earlier VMM when this one came, and the guest goes on with it; 0: the
 * controllers are as after power-on.
 */
int papr_intc_adopted(const papr_intc *intc);

/** Both controllers as after power-on. No vCPU runs. flags: PAPR_INTC_RESET_*. Every vCPU is kicked. */
int papr_intc_machine_reset(const papr_intc *intc, uint32_t flags);

/**
 * Stops the data plane: events and levels are recorded from now on, calls of the guest wait. Nests. -ETIMEDOUT
 * after deadline_ms milliseconds; then everything goes on as before.
 */
int papr_intc_quiesce(const papr_intc *intc,
                      uint32_t deadline_ms);

/**
 * Undoes one quiesce; the last one replays what was recorded. by: 0, or PAPR_INTC_MAPPED or PAPR_INTC_REMOTE
 * from now on (at the last resume only).
 */
int papr_intc_resume(const papr_intc *intc,
                     uint32_t by);

/** Who runs the data plane at present: PAPR_INTC_MAPPED or PAPR_INTC_REMOTE. */
int papr_intc_executor(const papr_intc *intc);

/**
 * Mapped mode from now on, irqfds included. -EPROTONOSUPPORT if the daemon itself has asked for remote mode:
 * the wish is remembered for the next daemon.
 */
int papr_intc_promote(const papr_intc *intc);

/** Remote mode from now on, irqfds included. */
int papr_intc_demote(const papr_intc *intc);

/**
 * While it is set (not 0), calls with this controller that wait for a daemon, events of sources among them, return
 * -ECANCELED; so do those that wait already. The same call, made again, goes on where it stopped and runs once.
 */
int papr_intc_set_cancelled(const papr_intc *intc,
                            int cancelled);

/**
 * Puts the daemon of another binary in the place of the one that serves and of those started later. In mapped
 * mode interrupts flow meanwhile; calls wait. daemon and daemon_args: as in papr_intc_options. upgraded
 * may be NULL. If it fails the old daemon serves, or is started again.
 */
int papr_intc_upgrade(const papr_intc *intc,
                      const char *daemon,
                      const char *const *daemon_args,
                      papr_intc_upgraded *upgraded);

/** What the daemon says to people. what: PAPR_INTC_QUERY_*. text->data is a string, to be freed. */
int papr_intc_query(const papr_intc *intc,
                    uint32_t what,
                    uint64_t argument,
                    papr_intc_buffer *text);

/** Device tree of a mode (PAPR_INTC_MODE_*; 0: the active one), as a flattened blob, to be freed. */
int papr_intc_fdt(const papr_intc *intc, uint32_t mode, papr_intc_buffer *fdt);

/**
 * The head of the state, to be shown to the destination while the guest still runs. To be freed.
 * -ENOTSUP: the machine has what its compat level cannot carry.
 */
int papr_intc_state_header(const papr_intc *intc, papr_intc_buffer *head);

/**
 * May this machine take the state with that head? Asked of the destination before the source stops. An errno as
 * papr_intc_state_load would give it, with the reason in words.
 */
int papr_intc_state_check(const papr_intc *intc,
                          const uint8_t *head,
                          size_t size);

/**
 * The whole state, to be freed. The machine is quiesced (else -EBUSY) and stays so; what devices trigger from now
 * on is not in it.
 */
int papr_intc_state_save(const papr_intc *intc,
                         papr_intc_buffer *state);

/**
 * All of state takes effect on this machine, or nothing. The machine is quiesced (else -EBUSY), has its vCPUs, has
 * claimed the numbers of its fixed devices and has not run a guest. -ENOTSUP: not for this machine; -EUCLEAN:
 * damaged. Afterwards papr_intc_resume.
 */
int papr_intc_state_load(const papr_intc *intc,
                         const uint8_t *state,
                         size_t size);

/**
 * Gives a move up. A source forgets what it handed out; a destination that has loaded is back to reset. Either stays
 * quiesced.
 */
int papr_intc_state_abort(const papr_intc *intc);

/**
 * From now on the daemon marks the pages of guest RAM that it writes, over its restarts and upgrades too. Pages that
 * write_u32 stored to are marked by the VMM itself, always. Copy all of RAM after this, not before.
 */
int papr_intc_dirty_log_start(const papr_intc *intc);

/** Stops dirty logging and forgets what was marked and not taken. */
int papr_intc_dirty_log_stop(const papr_intc *intc);

/**
 * Takes the pages that the daemon has marked since the last call: page is called for each run of them, ascending,
 * with its guest physical address and its length, multiples of 4096 bytes. Copy them after this. Needs no daemon. The set is
 * final only if it was taken while the machine was quiesced.
 */
int papr_intc_dirty_log_take(const papr_intc *intc,
                             void (*page)(void *opaque, uint64_t gpa, uint64_t bytes),
                             void *opaque);

/** Frees the bytes and sets data to NULL and size to 0. Does nothing if buffer or its data is NULL. */
void papr_intc_buffer_free(papr_intc_buffer *buffer);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* PAPR_INTC_H */
