import copy
import io
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from training_setup import BATCH, CLASSES, tiny_images, tiny_run

from pibench.models.cost import relu_shapes
from pibench.models.training.files import TrainingError
from pibench.models.training.gradients import WARM_UP, Gradients, RecordedGradients
from pibench.models.training.images import Images
from pibench.models.training.loop import Losses, Setting, train
from pibench.models.training.relus import SoftReLU, TrainingReLU, exchange_relus
from pibench.models.training.schedules import GateSchedule, LassoSchedule, Schedule
from pibench.models.training.shallow import put_gate
from pibench.models.training.tasks.gated import Gated
from pibench.models.training.tasks.lasso import Lasso
from pibench.models.training.tasks.supervised import Supervised
from pibench.models.transforms import shallow_blocks
from pibench.models.zoo import resnet18

needs_cuda = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="replays CUDA graphs: no CUDA device here"
)


class Replayed(RecordedGradients):
    """Records by keeping the batch's place; replays by computing it again: a graph without a GPU."""

    def __init__(self, *args):
        super().__init__(*args, nullcontext)
        self.recordings = 0

    def _aside(self, x, labels):
        return Gradients.__call__(self, x, labels)

    def _record(self, x, labels):
        self.x, self.labels, self.recordings = x.clone(), labels.clone(), self.recordings + 1
        self.graph = SimpleNamespace(replay=self._replay)

    def _replay(self):
        self.recorded = Gradients.__call__(self, self.x, self.labels)


def network():
    torch.manual_seed(0)
    return resnet18(classes=CLASSES, width=2)


def batches(count=6):
    images = tiny_images(count * BATCH + 20)
    return [(x.contiguous(), labels) for x, labels in list(images.epoch(BATCH, 0, 0))[:count]]


def test_a_step_is_recorded_after_the_warm_up_and_again_when_a_constant_changes():
    task = Supervised(network(), Schedule(1, 0.1))
    constants = [(1,)] * (WARM_UP + 2) + [None] * 2 + [(2,)] * (WARM_UP + 2)
    task.constants = iter([*constants, (2,)]).__next__
    gradients = Replayed(task, task.optimizers(task.schedule, 1))
    x, labels = batches(1)[0]
    seen = []
    for _ in constants:
        gradients(x, labels)
        seen.append(gradients.graph is not None)
    assert seen == [False] * WARM_UP + [True] * 2 + [False] * 2 + [False] * WARM_UP + [True] * 2
    assert gradients.recordings == 2
    gradients(x[:5], labels[:5])  # a batch of another size is another step
    assert gradients.graph is None


def test_a_replayed_step_takes_the_new_batch_and_the_new_weights():
    task = Supervised(network(), Schedule(1, 0.1))
    other = copy.deepcopy(task)
    pair = [Replayed(task, task.optimizers(task.schedule, 1))]
    pair.append(Gradients(other, other.optimizers(other.schedule, 1), nullcontext))
    for x, labels in batches():
        losses = [gradients(x, labels) for gradients in pair]
        assert torch.equal(*losses)
        for gradients in pair:
            gradients.optimizers[0].step()
    assert pair[0].recordings == 1
    state, expected = task.model.state_dict(), other.model.state_dict()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_tasks_name_what_their_loss_depends_on():
    model, structured = network(), shallow_blocks(network(), ["layer2.1"])
    put_gate(model, structured, "layer2.1")
    fading = Gated(model, GateSchedule(2, 0.05, fading=0.5), network(), (), network())
    fading.before_step(0.4)
    assert fading.constants() is None
    fading.before_step(0.5)
    assert fading.constants() == ()
    model = network()
    exchange_relus(model, {"relu": SoftReLU((2, 32, 32))})
    selecting = Lasso(model, LassoSchedule(1, 0.02), 10)
    for stopped in (False, True):
        selecting.extra["full"] = torch.tensor(stopped)
        selecting.before_step(0.5)
        assert selecting.constants() is stopped


def test_a_loss_that_is_no_number_is_found_where_it_was(tmp_path):
    class Breaks(Supervised):
        steps = 0

        def loss(self, x, labels):
            self.steps += 1
            return super().loss(x, labels) * (float("nan") if self.steps == 4 else 1.0)

    schedule = Schedule(3, 0.1, batch=BATCH)
    setting = Setting(tiny_images())
    assert setting.images.steps(BATCH) == 2
    task = Breaks(network(), schedule)
    with pytest.raises(TrainingError, match=r"at step 2 of epoch 2 .* the loss is nan"):
        train(task, schedule, setting, "breaks", tmp_path, tmp_path / "log", stream=io.StringIO())


def test_losses_are_read_now_and_then_and_the_first_wrong_one_is_found():
    losses = Losses(8, torch.device("cpu"))
    assert losses.every == 1
    assert Losses(8, torch.device("meta")).every == 50
    losses.every = 3
    found = []
    for value in (1.0, 2.0, 3.0, 4.0, float("inf"), float("nan")):
        losses.add(torch.tensor(value))
        found.append(losses.read())
    assert found == [None] * 5 + [(5, float("inf"))]
    short = Losses(2, torch.device("cpu"))
    short.every = 50
    for value in (1.0, float("nan")):
        short.add(torch.tensor(value))
    assert short.read()[0] == 2  # the epoch's last step is always read


def test_what_a_recorded_step_reads_stays_in_its_place():
    relu = TrainingReLU(torch.ones(2, 4, 4, dtype=torch.bool))
    place = relu.lower.data_ptr()
    relu.set_mask(torch.zeros(2, 4, 4, dtype=torch.bool))
    assert relu.lower.data_ptr() == place
    model = network()
    shapes = relu_shapes(network(), torch.zeros(1, 3, 32, 32))
    exchange_relus(model, {name: SoftReLU(shape) for name, shape in shapes.items()})
    task = Lasso(model, LassoSchedule(1, 0.02, checks=1), 10)
    task.optimizers(task.schedule, 1)
    task.before_step(0.0)
    place, weight = task.extra["weight"].data_ptr(), float(task.extra["weight"])
    task.after_step(1.0)
    assert task.extra["weight"].data_ptr() == place
    assert float(task.extra["weight"]) == pytest.approx(1.1 * weight)


@needs_cuda
@pytest.mark.parametrize("row", ["senet-0.09", "joint-0.052", "snl-0.09"])
def test_recorded_steps_train_the_network_that_computed_ones_do(tmp_path, monkeypatch, row):
    torch.backends.cudnn.deterministic = True
    images = tiny_images(1000, 100)
    device = torch.device("cuda")
    on_device = Images(*(part.to(device) for part in vars(images).values() if torch.is_tensor(part)), CLASSES)
    recordings = []
    record = RecordedGradients._record
    monkeypatch.setattr(RecordedGradients, "_record", lambda *args: recordings.append(record(*args)))
    digests = []
    for recorded in (True, False):
        run = tiny_run(tmp_path / str(recorded))
        run.setting = Setting(on_device, device, recorded=recorded)
        digests.append([phase.digest for phase in run.trained(row).phases])
    assert digests[0] == digests[1]
    assert recordings
