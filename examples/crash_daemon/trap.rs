//! Catches every system call of the process: a seccomp filter traps all that do not come from one
//! instruction of ours, and the handler of SIGSYS makes the call itself, after numbering it.
//!
//! Not caught, because they cannot be made from a handler or mean nothing to a crash: those of [`DIRECT`].
//! x86-64 only; elsewhere only writes are numbered.
#![allow(unsafe_code)] // a signal handler and a system call by hand

use nix::libc;

use crate::control::{Point, point};

/// Which calls may fail so (from their manual pages).
pub fn can_fail(call: i64, command: i64, errno: i32) -> bool {
    use libc::*;
    let may = |calls: &[c_long]| calls.contains(&call);
    // Of what fcntl does here only this makes a descriptor, and nothing waits.
    if call == SYS_fcntl {
        return errno == EMFILE && command == i64::from(F_DUPFD_CLOEXEC);
    }
    match errno {
        EINTR => may(&[
            SYS_read,
            SYS_write,
            SYS_recvmsg,
            SYS_sendmsg,
            SYS_epoll_wait,
            SYS_epoll_pwait,
            SYS_ppoll,
            SYS_poll,
            SYS_accept,
            SYS_accept4,
            SYS_connect,
            SYS_openat,
        ]),
        EAGAIN => may(&[
            SYS_read,
            SYS_write,
            SYS_recvmsg,
            SYS_sendmsg,
            SYS_accept,
            SYS_accept4,
            SYS_mmap,
        ]),
        ENOMEM => may(&[
            SYS_mmap,
            SYS_munmap,
            SYS_madvise,
            SYS_mprotect,
            SYS_memfd_create,
            SYS_epoll_ctl,
            SYS_epoll_create1,
            SYS_recvmsg,
            SYS_sendmsg,
            SYS_socket,
            SYS_socketpair,
            SYS_openat,
            SYS_ftruncate,
            SYS_signalfd4,
            SYS_eventfd2,
            SYS_mkdir,
            SYS_bind,
        ]),
        EMFILE => may(&[
            SYS_memfd_create,
            SYS_epoll_create1,
            SYS_socket,
            SYS_socketpair,
            SYS_openat,
            SYS_accept,
            SYS_accept4,
            SYS_signalfd4,
            SYS_eventfd2,
            SYS_dup,
        ]),
        _ => false,
    }
}

#[cfg(target_arch = "x86_64")]
mod caught {
    use super::*;

    /// Not caught.
    const DIRECT: [libc::c_long; 12] = [
        libc::SYS_rt_sigreturn,
        libc::SYS_rt_sigprocmask,
        libc::SYS_exit,
        libc::SYS_exit_group,
        libc::SYS_clone,
        libc::SYS_clone3,
        libc::SYS_vfork,
        libc::SYS_execve,
        libc::SYS_futex,
        libc::SYS_sched_yield,
        libc::SYS_set_robust_list,
        libc::SYS_rseq,
    ];

    core::arch::global_asm!(
        ".globl papr_crash_call",
        ".globl papr_crash_called",
        "papr_crash_call:",
        "mov rax, rdi",
        "mov rdi, rsi",
        "mov rsi, rdx",
        "mov rdx, rcx",
        "mov r10, r8",
        "mov r8, r9",
        "mov r9, [rsp + 8]",
        "syscall",
        "papr_crash_called:",
        "ret",
    );

    unsafe extern "C" {
        fn papr_crash_call(n: i64, a: i64, b: i64, c: i64, d: i64, e: i64, f: i64) -> i64;
        fn papr_crash_called();
    }

    /// A system call that is not trapped.
    ///
    /// # Safety
    /// As the call itself.
    unsafe fn direct(n: i64, [a, b, c, d, e, f]: [i64; 6]) -> i64 {
        // SAFETY: the stub above follows the C convention and passes its arguments on; the rest is the
        // caller's.
        unsafe { papr_crash_call(n, a, b, c, d, e, f) }
    }

    pub fn sleep() {
        let second = [1i64, 0];
        // SAFETY: nanosleep only reads the two words.
        unsafe { direct(libc::SYS_nanosleep, [second.as_ptr() as i64, 0, 0, 0, 0, 0]) };
    }

    extern "C" fn caught(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
        // SAFETY: the kernel passes a ucontext to a handler with SA_SIGINFO, which is ours alone until we
        // return.
        let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
        let register = |r: libc::c_int| registers[r as usize];
        let call = register(libc::REG_RAX);
        let arguments = [
            libc::REG_RDI,
            libc::REG_RSI,
            libc::REG_RDX,
            libc::REG_R10,
            libc::REG_R8,
            libc::REG_R9,
        ]
        .map(register);
        let result = match point(Point::Call(call, arguments[1])) {
            Some(errno) => i64::from(-errno),
            // SAFETY: the process wanted to make exactly this call, with these arguments.
            None => unsafe { direct(call, arguments) },
        };
        registers[libc::REG_RAX as usize] = result;
    }

    pub fn install() -> std::io::Result<()> {
        // SAFETY: an all-zero sigaction is valid.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = caught as *const () as usize;
        // Calls block inside of the handler; others of the same thread never come from there.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
        // SAFETY: the handler only does what is allowed there: atomics and system calls.
        if unsafe { libc::sigaction(libc::SIGSYS, &action, std::ptr::null_mut()) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
        let here = papr_crash_called as *const () as u64;
        let mut filter = vec![load(0)];
        let trap_after = DIRECT.len() as u8;
        for (i, call) in DIRECT.into_iter().enumerate() {
            // To the ALLOW that is last.
            filter.push(equal(call as u32, trap_after - i as u8 + 4, 0));
        }
        filter.extend([
            load(8),
            equal(here as u32, 0, 2),
            load(12),
            equal((here >> 32) as u32, 1, 0),
            give(libc::SECCOMP_RET_TRAP),
            give(libc::SECCOMP_RET_ALLOW),
        ]);
        let program = libc::sock_fprog {
            len: filter.len() as u16,
            filter: filter.as_mut_ptr(),
        };
        // SAFETY: the program outlives the calls, which only read it.
        let done = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) == 0
        };
        if done {
            Ok(())
        } else {
            Err(std::io::Error::last_os_error())
        }
    }

    /// Loads a word of the call's description: 0 its number, 8 and 12 the address after the instruction.
    fn load(offset: u32) -> libc::sock_filter {
        let code = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
        libc::sock_filter {
            code,
            jt: 0,
            jf: 0,
            k: offset,
        }
    }

    fn equal(k: u32, jt: u8, jf: u8) -> libc::sock_filter {
        let code = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
        libc::sock_filter { code, jt, jf, k }
    }

    fn give(k: u32) -> libc::sock_filter {
        let code = (libc::BPF_RET | libc::BPF_K) as u16;
        libc::sock_filter {
            code,
            jt: 0,
            jf: 0,
            k,
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod caught {
    pub fn sleep() {
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
    pub fn install() -> std::io::Result<()> {
        Ok(())
    }
}

pub use caught::{install, sleep};
