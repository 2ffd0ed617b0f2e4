//! XICS: (skeleton)
