"""Time of training steps, their input and their teacher, for one trial and for trials that share a GPU."""
