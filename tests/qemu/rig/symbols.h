/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the rig calls in QEMU: functions that the binary exports dynamically, found by name when the
 * rig is loaded. One missing is a reason to refuse. symbols.c finds them; everything else calls
 * `qemu.NAME(…)`.
 *
 * Objects of QEMU are `void *` here: the rig looks into none of them but where a file says so and
 * checks it.
 */
#ifndef RIG_SYMBOLS_H
#define RIG_SYMBOLS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A node of a singly linked list of pointers, as GLib has it. */
struct list {
    void *data;
    struct list *next;
};

/* A growing array of bytes, as GLib has it. */
struct bytes {
    uint8_t *data;
    unsigned length;
};

/* What QEMU calls back once: the function, then two words that are QEMU's. */
struct notifier {
    void (*notify)(struct notifier *, void *);
    void *links[2];
};

/* The version, as the query-version command gives it. */
struct version {
    const int64_t *numbers; /* major, minor, micro */
    const char *package;
};

struct region_ops;

/* F(result, name, arguments) */
#define QEMU_FUNCTIONS(F)                                                                          \
    /* start */                                                                                    \
    F(void, register_module_init, (void (*)(void), int))                                           \
    F(struct version *, qmp_query_version, (void **))                                              \
    F(void, qemu_add_machine_init_done_notifier, (struct notifier *))                              \
    F(void, qemu_add_exit_notifier, (struct notifier *))                                           \
    F(void, qemu_register_reset, (void (*)(void *), void *))                                       \
    F(void, rcu_register_thread, (void))                                                           \
    F(void, rcu_unregister_thread, (void))                                                         \
    F(void, qemu_set_fd_handler, (int, void (*)(void *), void (*)(void *), void *))                \
    F(void, error_setg_internal, (void **, const char *, int, const char *, const char *, ...))    \
    /* the big lock */                                                                             \
    F(bool, qemu_mutex_iothread_locked, (void))                                                    \
    F(void, qemu_mutex_lock_iothread_impl, (const char *, int))                                    \
    F(void, qemu_mutex_unlock_iothread, (void))                                                    \
    /* classes and objects */                                                                      \
    F(void *, object_class_by_name, (const char *))                                                \
    F(void *, object_class_dynamic_cast, (void *, const char *))                                   \
    F(struct list *, object_class_get_list, (const char *, bool))                                  \
    F(const char *, object_get_typename, (void *))                                                 \
    F(size_t, object_type_get_instance_size, (const char *))                                       \
    F(void *, object_resolve_path, (const char *, bool *))                                         \
    F(void *, object_resolve_path_type, (const char *, const char *, bool *))                      \
    F(void *, object_resolve_path_component, (void *, const char *))                               \
    F(uint64_t, object_property_get_uint, (void *, const char *, void **))                         \
    F(bool, object_property_get_bool, (void *, const char *, void **))                             \
    F(char *, object_property_get_str, (void *, const char *, void **))                            \
    F(void *, qdev_get_machine, (void))                                                            \
    /* the pseries machine and its vCPUs */                                                        \
    F(int64_t, spapr_hypercall, (void *, uint64_t, uint64_t *))                                    \
    F(int, spapr_get_vcpu_id, (void *))                                                            \
    F(void, spapr_dt_rtas_tokens, (void *, int))                                                   \
    F(int, ppc_cpu_gdb_read_register, (void *, struct bytes *, int))                               \
    F(void *, qdev_get_gpio_in, (void *, int))                                                     \
    F(void, qemu_set_irq, (void *, int))                                                           \
    /* memory */                                                                                   \
    F(void *, get_system_memory, (void))                                                           \
    F(void, memory_region_init_io,                                                                 \
      (void *, void *, const struct region_ops *, void *, const char *, uint64_t))                 \
    F(void, memory_region_add_subregion_overlap, (void *, uint64_t, void *, int))                  \
    F(uint32_t, memory_region_dispatch_read, (void *, uint64_t, uint64_t *, int, uint32_t))        \
    F(uint32_t, memory_region_dispatch_write, (void *, uint64_t, uint64_t, int, uint32_t))         \
    F(int, memory_region_get_fd, (void *))                                                         \
    F(void *, memory_region_get_ram_ptr, (void *))                                                 \
    F(uint64_t, memory_region_size, (void *))                                                      \
    F(void *, host_memory_backend_get_memory, (void *))                                            \
    F(uint32_t, address_space_ldl_be, (void *, uint64_t, uint32_t, uint32_t *))                    \
    F(void, address_space_stl_be, (void *, uint64_t, uint32_t, uint32_t, uint32_t *))              \
    F(uint32_t, address_space_read_full, (void *, uint64_t, uint32_t, void *, uint64_t))           \
    /* GLib and libfdt, which QEMU is linked with */                                               \
    F(struct bytes *, g_byte_array_new, (void))                                                    \
    F(struct bytes *, g_byte_array_set_size, (struct bytes *, unsigned))                           \
    F(void, g_free, (void *))                                                                      \
    F(int, fdt_create_empty_tree, (void *, int))                                                   \
    F(const void *, fdt_getprop, (const void *, int, const char *, int *))

struct qemu {
#define FIELD(result, name, arguments) result(*name) arguments;
    QEMU_FUNCTIONS(FIELD)
#undef FIELD
    void *address_space_memory;
};

extern struct qemu qemu;

/* Fills `qemu`. The name of one that is missing, or NULL. */
const char *symbols_find(void);

/* The vCPU whose thread calls, or NULL. */
void *symbols_current_cpu(void);

/* QEMU's own code: its first byte and the one after its last. */
void symbols_text(uintptr_t *begin, uintptr_t *end);

/* An unspecified origin of a memory access (MemTxAttrs). */
#define ATTRS_UNSPECIFIED 1u

#endif
