"""`bash run.sh --doctor [CONFIG]`: what a run would meet on this machine, before it is started.

    report.py    sections of facts, each with a mark, and the problems among them
    runs.py      the runs that the command starts, and the one that is looked at for all
    hardware.py  what this machine has, and what would be slow on it and why
    files.py     the training set (a quick look), verification sets, IJB folders
    disk.py      what the run writes, and what is free
    start.py     whether the run goes on or begins, by its own comparison of settings and checks of start files
    needs.py     bytes that a run takes on disk and in memory, from its settings
    memory.py    what of that a rank's memory has room for
    trial.py     a few steps of the real run on all ranks, the loader and the step alone, and what they come to in hours
    examine.py   the command

It writes no file of the run and none beside the data; on a GPU what the trial compiles stays in build/compiled of the
checkout. Exit status 0, or that of the first problem, as the run's would be (2 settings, 3 data, …), with all problems
listed. Proven by tests/recognition/test_doctor*.py.
"""

from recognition.doctor.examine import examine

__all__ = ["examine"]
