//! The Cap'n Proto edge.
