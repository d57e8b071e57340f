"""Which data the studies' tasks have, as words of the command."""

# Questions about a sentence each; 2,000 of the split `test` are for the score.
QAMR = ["task=answers", "task.path={data}/qamr", "task.validation_split=test", "task.validation_examples=2000"]
QAMR += ["task.most=1000", "train.max_length=96"]


def words(task: str, glue: str | None, data: str | None) -> list[str]:
    """GLUE's tasks come from the hub unless its directory is given; qamr is a directory of `data`."""
    if task == "qamr":
        if data is None:
            raise SystemExit("qamr is read from a directory: say with --data which one holds qamr/")
        return [word.format(data=data) for word in QAMR]
    return [f"task={task}", *([f"task.path={glue}"] if glue else [])]
