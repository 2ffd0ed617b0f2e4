//! Gives the shared library its soname: the part of the version that says what programs may be linked with it.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libpapr_intc.so.0");
}
