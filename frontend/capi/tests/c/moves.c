/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
 *
 * A guest's interrupts move from one machine to another, and the pages written meanwhile are found.
 */
#include "check.h"

static struct bench here, there;

static void the_state_moves_with_what_is_pending(void)
{
    papr_intc_buffer head, state;
    start(&here, PAPR_INTC_IC_DUAL, PAPR_INTC_MAPPED);
    choose_xive(&here);
    route(&here, LISN, PAPR_INTC_CLAIM_MSI);
    MUST(papr_intc_state_header(here.intc, &head));
    MUST(papr_intc_trigger(here.intc, LISN));
    MUST(papr_intc_quiesce(here.intc, 1000));
    MUST(papr_intc_state_save(here.intc, &state));
    CHECK(state.size > head.size);

    start(&there, PAPR_INTC_IC_DUAL, PAPR_INTC_REMOTE);
    memcpy(there.ram, here.ram, RAM);
    MUST(papr_intc_state_check(there.intc, head.data, head.size));
    CHECK(papr_intc_state_check(there.intc, head.data, head.size / 2) < 0);
    MUST(papr_intc_quiesce(there.intc, 1000));
    state.data[state.size / 2] ^= 1;
    CHECK(papr_intc_state_load(there.intc, state.data, state.size) < 0);
    state.data[state.size / 2] ^= 1;
    MUST(papr_intc_state_load(there.intc, state.data, state.size));
    MUST(papr_intc_state_abort(there.intc)); /* as if it had never been */
    MUST(papr_intc_state_load(there.intc, state.data, state.size));
    MUST(papr_intc_resume(there.intc, 0));
    papr_intc_buffer_free(&head);
    papr_intc_buffer_free(&state);
    CHECK(take(&there) == LISN);
    MUST(papr_intc_trigger(there.intc, LISN));
    CHECK(take(&there) == LISN);
    stop(&there);

    MUST(papr_intc_state_abort(here.intc)); /* it could have gone on as well */
    MUST(papr_intc_resume(here.intc, 0));
    CHECK(take(&here) == LISN);
    stop(&here);
}

static void a_machine_that_differs_says_how(void)
{
    papr_intc_buffer head;
    struct plan p;
    start(&here, PAPR_INTC_IC_DUAL, 0);
    MUST(papr_intc_state_header(here.intc, &head));
    plan(&p, &there, PAPR_INTC_IC_DUAL, 0);
    p.machine.sources = 0x1800;
    start_planned(&there, &p);
    CHECK(papr_intc_state_check(there.intc, head.data, head.size) < 0);
    CHECK(strstr(papr_intc_last_error(), "sources"));
    papr_intc_buffer_free(&head);
    stop(&here);
    stop(&there);
}

struct run {
    unsigned count;
    uint64_t gpa, bytes;
};

static void note(void *opaque, uint64_t gpa, uint64_t bytes)
{
    struct run *run = opaque;
    run->count++;
    run->gpa = gpa;
    run->bytes = bytes;
    CHECK(papr_intc_daemon_pid(here.intc) > 0); /* it may call back */
}

static void pages_of_the_daemon_are_logged_and_those_of_the_vmm_are_its_own(void)
{
    struct run run = {0};
    start(&here, PAPR_INTC_IC_DUAL, PAPR_INTC_MAPPED);
    choose_xive(&here);
    route(&here, LISN, PAPR_INTC_CLAIM_MSI);
    MUST(papr_intc_dirty_log_start(here.intc));
    MUST(papr_intc_dirty_log_start(here.intc));
    MUST(papr_intc_trigger(here.intc, LISN));
    CHECK(here.writes == 1 && take(&here) == LISN);
    MUST(papr_intc_dirty_log_take(here.intc, note, &run));
    CHECK(run.count == 0); /* write_u32 has marked it */

    MUST(papr_intc_demote(here.intc));
    MUST(papr_intc_trigger(here.intc, LISN));
    CHECK(take(&here) == LISN && here.writes == 1);
    MUST(papr_intc_dirty_log_take(here.intc, note, &run));
    CHECK(run.count == 1 && run.gpa == QUEUE && run.bytes == 4096);
    MUST(papr_intc_dirty_log_take(here.intc, note, &run));
    CHECK(run.count == 1);

    kill_daemon(&here); /* the next one logs too */
    MUST(papr_intc_trigger(here.intc, LISN));
    CHECK(take(&here) == LISN);
    MUST(papr_intc_dirty_log_take(here.intc, note, &run));
    CHECK(run.count == 2 && run.gpa == QUEUE);
    MUST(papr_intc_dirty_log_stop(here.intc));
    MUST(papr_intc_trigger(here.intc, LISN));
    CHECK(take(&here) == LISN);
    MUST(papr_intc_dirty_log_take(here.intc, note, &run));
    CHECK(run.count == 2);
    stop(&here);
}

MAIN(TEST(the_state_moves_with_what_is_pending), TEST(a_machine_that_differs_says_how),
     TEST(pages_of_the_daemon_are_logged_and_those_of_the_vmm_are_its_own))
