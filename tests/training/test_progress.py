import sys

from startsparse.training import progress

ROW = {"step": 5, "epoch": 1, "loss": 0.5, "accuracy": 0.25, "density": 0.05}


def test_lines_where_there_is_no_terminal(capsys):
    show = progress.open_progress(total=10, done=0)
    show.step(5)
    show.validated(ROW)
    show.close()
    assert (
        capsys.readouterr().err
        == "step 5/10  epoch 1: validation loss 0.5000, accuracy 25.00 %, density 0.05\n"
    )


def test_nothing_where_nothing_is_wanted(capsys):
    show = progress.open_progress(total=10, done=0, wanted=False)
    show.step(5)
    show.validated(ROW)
    show.close()
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    show = progress.open_progress(total=10, done=4)
    assert isinstance(show, progress.Bar)
    show.step(5)
    show.validated(ROW)
    show.close()
    assert "5/10" in capsys.readouterr().err
