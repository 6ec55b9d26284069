//! Parameters, FLOPs and cache bytes, from an architecture alone.
