"""What is learned: tasks, the batches they are made of, how an answer is scored. How it is trained is in train."""
