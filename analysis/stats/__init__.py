"""Numbers of a study with their uncertainty: fronts, intervals, paired differences, importance, hypervolume.

Entry point: `front.collect_points`, which turns records into the points that the other modules take. It must not import
findings, reporting or what stands above them.
"""
