"""The answer of a study in words, and how sure it is; entry point: `answer.answer_text`.

Nothing here may import reporting or the commands.
"""
