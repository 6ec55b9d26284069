//! The plan, its executor, and one file a method.
