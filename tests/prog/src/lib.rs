//! Packets through Fairlead's loaded programs, by BPF_PROG_TEST_RUN.
