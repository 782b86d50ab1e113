"""Runs a command on a terminal of 80 columns, presses Ctrl-C there once a fake process has told a step, and prints what
is left on the screen: terminal.py STEP COMMAND... Its exit status is the command's.

FAKE_LOG is as in the fake worker. A terminal shows the key as ^C where the cursor is, and wraps at its right margin.
"""

import fcntl
import os
import pty
import struct
import sys
import termios
import time

COLUMNS = 80
SECONDS_ON_SCREEN = 0.4  # for a bar that is drawn some times a second


class Screen:
    def __init__(self):
        self.lines, self.row, self.column = [""], 0, 0

    def write(self, text):
        position = 0
        while position < len(text):
            if text.startswith("\x1b[", position):
                end = next(i for i in range(position + 2, len(text)) if text[i].isalpha())
                self.control(text[position + 2 : end], text[end])
                position = end + 1
                continue
            self.put(text[position])
            position += 1

    def put(self, character):
        if character == "\r":
            self.column = 0
        elif character == "\n":
            self.down()
        else:
            if self.column == COLUMNS:
                self.column = 0
                self.down()
            line = self.lines[self.row].ljust(self.column)
            self.lines[self.row] = line[: self.column] + character + line[self.column + 1 :]
            self.column += 1

    def down(self):
        self.row += 1
        if self.row == len(self.lines):
            self.lines.append("")

    def control(self, number, letter):
        if letter == "A":
            self.row = max(0, self.row - int(number or 1))
        elif letter == "K":
            start = 0 if number == "2" else self.column
            self.lines[self.row] = self.lines[self.row][:start]
        elif letter != "m":
            sys.exit(f"the fake terminal knows no control sequence {number}{letter}")


def is_told(step):
    try:
        with open(os.environ["FAKE_LOG"], encoding="utf-8") as log:
            return step in log.read().splitlines()
    except FileNotFoundError:
        return False


def main():
    step, command = sys.argv[1], sys.argv[2:]
    child, terminal = pty.fork()
    if child == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("4H", 24, COLUMNS, 0, 0))
        os.execv(command[0], command)
    os.set_blocking(terminal, False)
    shown, told = b"", None
    while True:
        try:
            read = os.read(terminal, 65536)
        except BlockingIOError:
            if told is None and is_told(step):
                told = time.monotonic()
            elif told and time.monotonic() - told > SECONDS_ON_SCREEN:
                os.write(terminal, b"\x03")
                told = 0
            time.sleep(0.01)
            continue
        except OSError:  # the command has ended
            break
        shown += read
    screen = Screen()
    screen.write(shown.decode())
    sys.stdout.write("\n".join(line.rstrip() for line in screen.lines).rstrip() + "\n")
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


main()
