"""Labels: the teacher's memories on disk, how they are encoded, written and read."""
