"""Who runs, and what the next call of the model does.

Texts run in the order in which they came: the first one that waits takes the next free seat, when
there are pages for all it has; none goes before it. So none waits for ever.

Calls that read chunks of prompts take turns with calls that add a token to each running text: at
most ``prompt_calls`` of the former between two of the latter. So a long prompt makes the others
slower, but never stops them.

Calls that check drafts (``drafts``; ``see`` says how many a text has) take turns with calls for the
texts that have none. A text that has some waits until its tokens are known. Drafts get pages that
are free: for them no text is put back.

Pages are given when tokens are written to them. When a lane has none left, the text on it that came
last is put back among those that wait: it gives up its pages, and later reads again all that it
has, which changes no token. The first of all texts is never put back, so that it comes to its end.
"""

from bisect import insort
from collections import deque
from collections.abc import Callable

from moejax.config.checks import LARGEST
from moejax.inference.engine.calls import Sizes
from moejax.inference.engine.pages import PagePool
from moejax.inference.engine.seats import Kind, Seats, Work
from moejax.inference.engine.texts import Text


class Schedule:
    """The texts that wait and that run, and the pages of the lanes."""

    def __init__(
        self,
        sizes: Sizes,
        vocab_size: int,
        *,
        window: int | None = None,
        share: bool = True,
        prompt_calls: int = 1,
    ) -> None:
        self.waiting: deque[Text] = deque()
        self.running: list[Text] = []
        """In the order in which they came."""
        self.seats = Seats(sizes, vocab_size)
        self.pools = [PagePool(sizes.pages, share) for _ in range(sizes.lanes)]
        self.put_back = self.found = self.found_tokens = 0
        """How often a text was put back, and found pages that it could share; their tokens."""
        self._sizes, self._window = sizes, window
        self._prompt_calls, self._turns = prompt_calls, 0
        self.see: Callable[[Text], int] | None = None
        """How many drafts there are for a text; None: there are none for any."""
        self._given: Kind | None = None
        self._checked = False

    @property
    def longest(self) -> int:
        """Tokens of the longest text that has enough pages when it is alone. (The last token is
        not written to any.)
        """
        sizes = self._sizes
        most = min(sizes.pages - 1, sizes.tables[-1], sizes.prompt_tables[-1])
        moving = -(-(self._window - 1) // sizes.page) if self._window else LARGEST
        fits = moving + 1 <= sizes.tables[-1] and moving + sizes.chunk // sizes.page <= min(
            sizes.pages - 1, sizes.prompt_tables[-1]
        )
        return LARGEST if fits else most * sizes.page + 1

    def next(self) -> Work | None:
        """What the next call does; None: there is nothing to do before other tokens are read."""
        self._seat_texts()
        work = self._choose(in_flight=self._given)
        self._given = None if work is None else work.kind
        return work

    def _choose(self, in_flight: Kind | None) -> Work | None:
        plain, drafted = self._who_goes_on()
        if in_flight == "check":  # its texts are not known yet: the next one is for all
            drafted = []
        may_read = not (plain or drafted) or self._turns < self._prompt_calls
        if may_read and (work := self._read_prompts()):
            self._turns += 1
            return work
        self._turns = 0
        ways = [(self._check, drafted), (self._decode, plain)]
        for act, texts in ways[::-1] if self._checked else ways:
            if work := act(texts):
                self._checked = work.kind == "check"
                return work
        return None

    def wrote(self, work: Work) -> None:
        """A call has been given to the device: what it writes is there for all later calls. How
        many drafts are right is not known yet.
        """
        for text, count in zip(work.texts, work.counts, strict=True):
            if work.kind != "check":
                self.go_on(text, count)
                text.decoding = text.written >= text.known
            if text.decoding:
                text.unread += 1

    def go_on(self, text: Text, count: int) -> None:
        """So many tokens more of a text are in its pages; those of drafts are known to be right."""
        text.written += count
        if text.followed is not None:
            text.followed = min(text.followed, text.written)
        if text.known >= (text.named + 1) * self._sizes.page <= text.written:
            self._name_pages(text)

    def leave(self, text: Text) -> None:
        """A text is over."""
        text.over = True
        if text.lane < 0:
            self.waiting.remove(text)
        else:
            self.running.remove(text)
            self._give_up(text)

    def slots(self) -> tuple[int, int]:
        """Slots of all pages that texts have, and those of them that no later token will see."""
        lost = sum(text.lost_slots(self._sizes.page, self._window) for text in self.running)
        return sum(pool.used for pool in self.pools) * self._sizes.page, lost

    def _need(self, tokens: int) -> int:
        """The most pages that a text of so many tokens has at a time."""
        page = self._sizes.page
        need = -(-tokens // page)
        if self._window is not None:
            need = min(need, -(-(self._window - 1) // page) + self._sizes.chunk // page)
        return need

    def _seat_texts(self) -> None:
        """Those that have waited longest take seats, as long as there are seats and pages."""
        while self.waiting:
            text = self.waiting[0]
            lanes = {lane: found for lane in self._open() if (found := self._fits(text, lane))}
            if not lanes:
                return
            lane = max(lanes, key=lambda lane: lanes[lane])
            self.waiting.popleft()
            self.seats.give(text, lane)
            insort(self.running, text, key=lambda text: text.id)
            self._share_pages(text)

    def _open(self) -> list[int]:
        return [lane for lane in range(self._sizes.lanes) if self.seats.free(lane)]

    def _fits(self, text: Text, lane: int) -> tuple[int, int] | None:
        """How many pages of a text are on a lane already, and how many are left there; None: it
        must wait. A page is left for each text there, which soon wants it, and those for the rest
        of what is being read.
        """
        pool, page = self.pools[lane], self._sizes.page
        there = [other for other in self.running if other.lane == lane]
        left = pool.available - len(there)
        left -= sum(self._to_come(other) for other in there)
        found = 0
        for number in range((text.known - max(1, self._sizes.ahead)) // page):
            at = pool.find(text.name(number, page, self._sizes.ahead))
            if at is None:
                break
            found += 1
            left -= pool.users[at] == 0
        left -= max(0, self._need(text.known + 1) - found)
        return (found, left) if left >= 0 or not there else None

    def _to_come(self, text: Text) -> int:
        """The pages that the rest of what a text has will want."""
        return 0 if text.decoding else max(0, self._need(text.known) - len(text.pages))

    def _share_pages(self, text: Text) -> None:
        """Take the next full pages of what a text is to read from those that are known. At least
        one token is left to be read, as the next one is drawn after it.
        """
        pool, page, ahead = self.pools[text.lane], self._sizes.page, self._sizes.ahead
        before, last = text.named, text.known - page - max(1, ahead)
        while text.written == text.named * page <= last:
            at = pool.find(text.name(text.named, page, ahead))
            if at is None:
                break
            pool.join(at)
            text.pages.append(at)
            text.named += 1
            text.written += page
            self._drop_pages(text)
        if new := text.named - before:
            text.since = text.written
            self.seats.show_all_pages(text)
            self.found += 1
            self.found_tokens += new * page

    def _read_prompts(self) -> Work | None:
        """Chunks of the texts that have not been read, the first ones on each lane."""
        texts: list[Text] = []
        counts = []
        rows = [0] * self._sizes.lanes
        for text in [text for text in self.running if not text.decoding]:
            if text.lane < 0 or rows[text.lane] == self._sizes.prompt_rows[-1]:
                continue
            self._share_pages(text)
            count = min(self._sizes.chunk, text.known - text.written)
            if self._make_room(text, count):
                texts.append(text)
                counts.append(count)
                rows[text.lane] += 1
        return Work(kind="prompt", texts=texts, counts=counts) if texts else None

    def _who_goes_on(self) -> tuple[list[Text], list[Text]]:
        """The texts that have been read and can go on, without drafts, and with them."""
        going = [text for text in self.running if text.decoding and text.left > 0]
        if self.see is None:
            return going, []
        plain: list[Text] = []
        drafted: list[Text] = []
        for text in going:
            if not self.see(text):
                plain.append(text)
            elif not text.unread:
                (drafted if text.left > 1 else plain).append(text)
        return plain, drafted

    def _decode(self, texts: list[Text]) -> Work | None:
        """A token for each text."""
        texts = [text for text in texts if text.written < text.room or self._make_room(text, 1)]
        return Work(kind="decode", texts=texts, counts=[1] * len(texts)) if texts else None

    def _check(self, texts: list[Text]) -> Work | None:
        """Drafts of texts, as many as there are pages for."""
        there, counts = [], []
        for text in texts:
            assert self.see is not None  # there are drafts
            if not self._make_room(text, 1):
                continue
            there.append(text)
            counts.append(min(1 + self.see(text), text.left, self._room(text)))
            self._make_room(text, counts[-1])
        return Work(kind="check", texts=there, counts=counts) if there else None

    def _room(self, text: Text) -> int:
        """Tokens that have place in a text's pages and in those that are free."""
        pages = len(text.pages) + self.pools[text.lane].available
        end = text.gone + min(pages, self._sizes.tables[-1])
        return end * self._sizes.page - text.written

    def _make_room(self, text: Text, count: int) -> bool:
        """Pages for the next tokens of a text; False: it has been put back."""
        if text.lane < 0:
            return False
        page, pool = self._sizes.page, self.pools[text.lane]
        if gone := self._drop_pages(text):
            self.seats.forget_pages(text, gone)
        new = -(-(text.written + count) // page) - text.gone - len(text.pages)
        for _ in range(new):
            while not pool.available:
                last = next(other for other in reversed(self.running) if other.lane == text.lane)
                self._put_back(last)
                if last is text:
                    return False
            text.pages.append(pool.take())
        if new > 0:
            self.seats.show_pages(text, new)
        text.settle(page, self._window)
        return True

    def _drop_pages(self, text: Text) -> int:
        """Give back the pages that no later token sees: how many there were."""
        if self._window is None:
            return 0
        seen = max(0, text.written - self._window + 1) // self._sizes.page
        gone = text.pages[: seen - text.gone]
        if gone:
            del text.pages[: len(gone)]
            self.pools[text.lane].leave(gone)
            text.gone += len(gone)
        return len(gone)

    def _name_pages(self, text: Text) -> None:
        """Name the pages that have become full of tokens that are known."""
        page, pool = self._sizes.page, self.pools[text.lane]
        read = text.written if text.followed is None else min(text.written, text.followed)
        full = (min(read, text.known) - self._sizes.ahead) // page
        while text.named < full:
            if text.named >= text.gone:
                at = text.pages[text.named - text.gone]
                pool.name(at, text.name(text.named, page, self._sizes.ahead))
            text.named += 1

    def _put_back(self, text: Text) -> None:
        """A text gives up its seat and its pages, and is the next to have them again."""
        self.put_back += 1
        self.running.remove(text)
        self._give_up(text)
        self.waiting.appendleft(text)

    def _give_up(self, text: Text) -> None:
        self._name_pages(text)
        self.seats.take_back(text)
        self.pools[text.lane].leave(text.pages)
        text.leave_seat()
