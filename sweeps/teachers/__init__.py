"""Teachers: their folder and model registry, their training, their caches, and how a worker asks them.

Entry points: `ensure.ensure_teacher` in the driver, `worker.make_teacher` in a worker.
Must not import execution or study.
"""
