//! HELLO: versions, limits, features, and who is refused.

use nix::libc;
use papr_intc_protocol::layout::membarrier;
use papr_intc_protocol::wire::handshake::*;
use papr_intc_protocol::wire::{MAX_BODY, MAX_FDS};

use crate::harness::Daemon;
use crate::harness::client::{self, Client, errno};
use crate::harness::guest::*;

#[test]
fn hello_tells_versions_limits_and_state() {
    let (_daemon, socket) = Daemon::connected(&[]);
    let main = Client::new(socket);
    let hello = main.hello();
    assert_eq!(
        (hello.protocol, hello.layout, hello.verdict),
        (1, 2, verdict::MAP)
    );
    assert_eq!(
        (hello.max_body, hello.max_fds),
        (MAX_BODY as u32, MAX_FDS as u32)
    );
    assert_eq!((hello.max_sources, hello.max_servers), (1 << 20, 4096));
    assert_eq!((hello.state, hello.generation), (state::COLD, 0));
    set_machine(&main, &machine()).unwrap();
    assert_eq!(main.hello().state, state::WANTS_MEMORY);
    get_shm(&main).unwrap();
    start(&main, executor::DAEMON).unwrap();
    let hello = main.hello();
    assert_eq!((hello.state, hello.generation), (state::SERVING, 1));
}

#[test]
fn hello_answers_the_features_that_both_sides_have() {
    let (_daemon, socket) = Daemon::connected(&[]);
    let main = Client::new(socket);
    let both = |features| {
        let hello = Hello {
            features,
            ..client::hello()
        };
        main.call(&hello).unwrap().features
    };
    assert_eq!(both(0), 0);
    let here = match membarrier::is_available() {
        true => feature::MEMBARRIER,
        false => 0,
    };
    assert_eq!(both(feature::MEMBARRIER), here);
    assert_eq!(both(!feature::MEMBARRIER), 0);
    assert_eq!(both(u32::MAX), here);
}

#[test]
fn hello_without_a_common_version_is_refused_with_both_ranges() {
    let (_daemon, socket) = Daemon::connected(&[]);
    let main = Client::new(socket);
    for (min, max) in [(3, 9), (0, 0), (9, 3)] {
        let refused = main.call(&Hello {
            protocol_min: min,
            protocol_max: max,
            ..client::hello()
        });
        let refused = refused.unwrap_err();
        assert_eq!(refused.errno, libc::EPROTONOSUPPORT);
        assert!(
            refused.text.contains(&format!("{min} to {max}"))
                && refused.text.contains("protocol 1 to 1"),
            "{}",
            refused.text
        );
        let refused = main.call(&Hello {
            layout_min: min,
            layout_max: max,
            ..client::hello()
        });
        assert_eq!(errno(refused), libc::EPROTONOSUPPORT);
    }
    let demoted = main.call(&Hello {
        plane_abi: 9,
        ..client::hello()
    });
    assert_eq!(demoted.unwrap().verdict, verdict::DEMOTE);
}
