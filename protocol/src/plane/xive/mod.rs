//! XIVE: (skeleton)
