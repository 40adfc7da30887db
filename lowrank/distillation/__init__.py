"""Teachers for students: their files, their outputs, a cache of those, and the losses that compare both.

Entry points: `find_teacher` and `load_teacher`; `LiveTeacher` and `CachedTeacher` give a teacher's outputs;
`fill_cache` computes them once per host; `distillation_loss` and `attention_loss` compare them with a student's.
Must not import `lowrank.training`, `deployment` or a command.
"""
