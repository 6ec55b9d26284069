//! Checks after the fact: validate and diff.
