"""Ray and the machines it runs on: connection, devices, watch over the head, and what spot machines cost.

Entry point: `ray_session.connect`. What is private or unstable in Ray is touched in `ray_adapter` alone.
Must not import resources, teachers, execution or study.
"""
