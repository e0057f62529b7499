//! Placeholder.
#![cfg_attr(not(test), no_std)]
#![no_main]
use tcpparser as _;
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
#[unsafe(no_mangle)]
extern "C" fn main() -> i32 {
    0
}
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
