"""What the sessions in Python share: where the server is, what is asked, and how a check is reported. Only the stdlib.

What is asked, and what the demo model says to it, stands in questions.json and is here as checks.QUESTION and so on.
A check is one line of JSON on stdout: its name, and what failed, or "".
"""

import json
import os
import pathlib

globals().update(json.loads((pathlib.Path(__file__).parent / "questions.json").read_text()))
URL, MODEL = os.environ["BASE_URL"], os.environ["MODEL"]
V1 = f"{URL}/v1"


def same(what, found, wanted):
    """Complain, naming both, unless they are equal."""
    if found != wanted:
        raise AssertionError(f"{what}: {found!r}, not {wanted!r}")


def same_text(found, wanted):
    """The same, whatever blank lines stand around it."""
    same("text", (found or "").strip(), wanted)


def counted(prompt, completion):
    """The two counts of a usage, as whole and streamed must both give them."""
    if not (isinstance(prompt, int) and isinstance(completion, int) and prompt > 0 and completion > 0):
        raise AssertionError(f"usage: {prompt!r} prompt tokens and {completion!r} of the answer")
    return prompt, completion


def whole_and_streamed(session):
    """Run session(False) and session(True), and report both; what they return must be the same."""
    seen = []
    for stream in (False, True):
        failure = ""
        try:
            seen.append(session(stream))
            same("streamed", seen[-1], seen[0])
        except Exception as error:
            failure = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        name = session.__name__ + (", streamed" if stream else "")
        print(json.dumps({"check": name, "failure": failure}), flush=True)
