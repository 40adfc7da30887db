"""What a report says, as typed records and sentences: answers, failures, costs, curves, comparisons.

Entry points: `answer.answers` and one function a module, such as `cost.study_cost`. Nothing is drawn or written here.
It must not import reporting, model_export or cli.
"""
