//! C's entry point: hands the process over to the daemon.
//!
//! Under `cfg(test)`, which only lints reach, there is nothing but an empty
//! main: a second panic handler would collide with that of std.
#![cfg_attr(not(test), no_std, no_main)]

#[cfg(test)]
fn main() {}
#[cfg(not(test))]
mod entry {
    use core::{ffi::c_int, mem::MaybeUninit, panic::PanicInfo};

    use tcpparser::daemon::{Daemon, Flow};
    use tcpparser::linux::{ArgumentVector, Linux, Single};

    static DAEMON: Single<Daemon> = Single::new(Daemon::new());
    static KERNEL: Single<MaybeUninit<Linux>> = Single::new(MaybeUninit::uninit());

    #[unsafe(no_mangle)]
    extern "C" fn main(_count: c_int, arguments: ArgumentVector) -> c_int {
        // What no release build can contain, to prove that the proof works.
        #[cfg(panic_probe)]
        if [false; 4][_count as usize] {
            return 1;
        }
        let (kernel, start_up) = Linux::start();
        let (Some(daemon), Some(kernel)) = (DAEMON.take(), KERNEL.hold(kernel)) else {
            return 1;
        };
        let mut flow = daemon.start(kernel, &start_up, arguments.after_name());
        loop {
            match flow {
                Flow::Continue => flow = daemon.turn(kernel),
                Flow::Exit(status) => return c_int::from(status),
            }
        }
    }

    /// Whatever could panic needs a symbol that exists nowhere: a release build
    /// with a panic path does not link.
    #[cfg(not(debug_assertions))]
    #[panic_handler]
    fn panic(_: &PanicInfo) -> ! {
        unsafe extern "C" {
            safe fn a_panic_path_survived() -> !;
        }
        a_panic_path_survived()
    }

    #[cfg(debug_assertions)]
    #[panic_handler]
    fn panic(info: &PanicInfo) -> ! {
        tcpparser::linux::abort_at(info)
    }

    /// Dev builds of core name it in their unwind tables; nothing unwinds.
    #[unsafe(no_mangle)]
    extern "C" fn rust_eh_personality() {}
}
