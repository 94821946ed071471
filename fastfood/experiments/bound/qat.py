"""Fine-tuning on few levels: theta and lambda_ are used as they will be sent, and the gradient goes
straight through the rounding to the numbers behind (Bengio et al., 2013, the straight-through
estimator) and, summed over those that share a level, to the level."""

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from fastfood.quantize import quantize

from ..data.tasks import Task
from ..training.train import make_trainer

BOOK_RATE = 0.1  # of a parameter's: at its own rate two levels soon meet at 0


class OnLevels(TrainerCallback):
    """Keeps `parameters`, each a vector in an optimizer's group of its own, on `levels` levels.

    The forward and the backward see the values that quantize() keeps as they are: at most `levels`
    numbers of float16. The optimizer sees the numbers behind them. The levels are moved by Adam, at
    a tenth of the rate that the parameter's group has at that step.
    """

    def __init__(self, parameters: list[nn.Parameter], levels: int):
        self.parameters = parameters
        self.behind = [p.detach().clone() for p in parameters]
        books = [quantize(p, levels).codebook.to(p) for p in parameters]
        self.books = [nn.Parameter(book) for book in books]
        self.optimizer = torch.optim.Adam([{"params": [book]} for book in self.books], lr=0.0)

    @torch.no_grad()
    def write(self) -> None:
        """Puts the values on levels into the parameters."""
        for p, behind, book in zip(self.parameters, self.behind, self.books, strict=True):
            p.copy_(_half(book)[_nearest(behind, book)])

    def on_step_begin(self, args, state, control, **kwargs):
        self.write()

    @torch.no_grad()
    def on_pre_optimizer_step(self, args, state, control, optimizer, **kwargs):
        for i, p in enumerate(self.parameters):
            symbols = _nearest(self.behind[i], self.books[i])
            self.books[i].grad = torch.zeros_like(self.books[i]).index_add_(0, symbols, p.grad)
            self.optimizer.param_groups[i]["lr"] = BOOK_RATE * optimizer.param_groups[i]["lr"]
            p.copy_(self.behind[i])
        self.optimizer.step()

    @torch.no_grad()
    def on_step_end(self, args, state, control, **kwargs):
        for p, behind in zip(self.parameters, self.behind, strict=True):
            behind.copy_(p)


def fine_tune(trial: dict, task: Task, model: nn.Module, levels: int) -> None:
    """Trains a SubspaceModel's theta and lambda_ on, with at most `levels` values each, and leaves
    them at these values. `trial` as for make_trainer; its batches come in an order of its own."""
    leaves = [model.theta] if model.lambda_ is None else [model.theta, model.lambda_]
    model.accepts_loss_kwargs = False  # the loss is the batch's mean, as in the training before
    trainer = make_trainer(trial, task, model)
    on_levels = OnLevels(leaves, levels)
    trainer.add_callback(on_levels)
    trainer.train()
    on_levels.write()


def _nearest(x: Tensor, book: Tensor) -> Tensor:
    return (x[:, None] - _half(book)).abs().argmin(1)


def _half(book: Tensor) -> Tensor:
    return book.half().to(book.dtype)
