//! A small conforming Hub server for the tests.
