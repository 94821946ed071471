"""Fine-tunes theta and lambda_ on few levels. The model uses the rounded values, as a message sends
them. The gradient passes unchanged through the rounding to the numbers before it (the
straight-through estimator of Bengio et al., 2013) and, summed over the numbers that share a level,
to that level."""

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from fastfood import SubspaceModel, parameter_groups
from fastfood.quantize import quantize

from ..data.task import Task
from ..training.train import Schedule, make_trainer

# Learning rate of the levels, relative to their parameter's: at 1, two levels soon meet at 0.
BOOK_RATE = 0.1


class OnLevels(TrainerCallback):
    """Keeps `parameters`, each a vector in an optimizer's group of its own, on `levels` levels.

    Forward and backward see rounded values, at most `levels` numbers of float16, which quantize()
    does not change further. The optimizer sees the numbers before rounding. An Adam of this class
    moves the levels, at a tenth of the rate that the parameter's group has at that step.
    """

    def __init__(self, parameters: list[nn.Parameter], levels: int):
        self.parameters = parameters
        self.unrounded = [p.detach().clone() for p in parameters]
        books = [quantize(p, levels).codebook.to(p) for p in parameters]
        self.books = [nn.Parameter(book) for book in books]
        self.optimizer = torch.optim.Adam([{"params": [book]} for book in self.books], lr=0.0)

    @torch.no_grad()
    def write(self) -> None:
        """Writes the rounded values into the parameters."""
        for p, unrounded, book in zip(self.parameters, self.unrounded, self.books, strict=True):
            p.copy_(_half(book)[_nearest(unrounded, book)])

    def on_step_begin(self, args, state, control, **kwargs):
        self.write()

    @torch.no_grad()
    def on_pre_optimizer_step(self, args, state, control, optimizer, **kwargs):
        for i, p in enumerate(self.parameters):
            symbols = _nearest(self.unrounded[i], self.books[i])
            self.books[i].grad = torch.zeros_like(self.books[i]).index_add_(0, symbols, p.grad)
            self.optimizer.param_groups[i]["lr"] = BOOK_RATE * optimizer.param_groups[i]["lr"]
            p.copy_(self.unrounded[i])
        self.optimizer.step()

    @torch.no_grad()
    def on_step_end(self, args, state, control, **kwargs):
        for p, unrounded in zip(self.parameters, self.unrounded, strict=True):
            unrounded.copy_(p)


def fine_tune(
    schedule: Schedule, lr: float, lambda_lr: float, task: Task, model: SubspaceModel, levels: int
) -> None:
    """Trains theta (at `lr`) and lambda_ (at `lambda_lr`) of a SubspaceModel further, on at most
    `levels` values each, and leaves them rounded. The schedule's seed orders the batches."""
    leaves = [model.theta] if model.lambda_ is None else [model.theta, model.lambda_]
    # the loss is a batch's mean, as in the first training
    model.accepts_loss_kwargs = False  # type: ignore[assignment]
    trainer = make_trainer(schedule, parameter_groups(model, lr, lambda_lr), task, model)
    on_levels = OnLevels(leaves, levels)
    trainer.add_callback(on_levels)
    trainer.train()
    on_levels.write()


def _nearest(x: Tensor, book: Tensor) -> Tensor:
    return (x[:, None] - _half(book)).abs().argmin(1)


def _half(book: Tensor) -> Tensor:
    return book.half().to(book.dtype)
