// An answer on the page: its text, token by token. All that a model says is text here, never HTML.

class Answer {
  constructor(box) {
    this.box = box;
    this.text = ''; // as the server gives it
    this.tokens = 0;
    this.decoder = new TextDecoder('utf-8'); // tokens may be parts of characters
    box.tabIndex = 0;
    box.setAttribute('role', 'group');
    box.setAttribute('aria-label', 'Answer; left and right go from token to token');
    box.addEventListener('keydown', event => this.go(event));
    for (const kind of ['pointerover', 'click']) {
      box.addEventListener(kind, event => { if (event.target.token) tell(event.target); });
    }
  }

  add(text, tokens) {
    this.text += text;
    this.tokens += tokens.length;
    if (!tokens.length) { // nothing is known but the text
      this.box.append(text);
      return;
    }
    setLayers(tokens[0].experts.length);
    for (const token of tokens) {
      const span = document.createElement('span');
      span.className = 't';
      span.token = token;
      span.textContent = this.decoder.decode(new Uint8Array(token.bytes), {stream: true});
      if (span.textContent.includes('\n')) span.classList.add('line');
      paint(span);
      this.box.append(span);
    }
  }

  // What is left of a character that never came whole.
  end() {
    const rest = this.decoder.decode();
    if (rest) this.box.append(rest);
  }

  go(event) {
    const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
    const ends = {Home: 0, End: -1}[event.key];
    if (step === undefined && ends === undefined) return;
    const all = [...this.box.querySelectorAll('.t')];
    const at = all.indexOf(experts.chosen);
    const next = ends === undefined ? all[at < 0 ? 0 : at + step] : all.at(ends);
    event.preventDefault();
    if (!next) return;
    tell(next);
    next.scrollIntoView({block: 'nearest'});
  }
}

// Puts a message on the page, and gives the box of its text.
function addMessage(role, text) {
  const message = document.createElement('article'), box = document.createElement('div');
  message.className = `message ${role}`;
  if (role !== 'text') {
    const who = document.createElement('h3');
    who.textContent = role === 'user' ? 'You' : 'Model';
    message.append(who);
  }
  box.className = 'said';
  box.textContent = text;
  message.append(box);
  byId('empty').hidden = true;
  byId('log').append(message);
  toEnd(true);
  message.scrollIntoView({block: 'nearest'});
  return box;
}

// Shows the end of the log, unless the reader has gone up in it.
function toEnd(always) {
  const log = byId('log');
  toEnd.follows = always || toEnd.follows;
  if (toEnd.follows) log.scrollTop = log.scrollHeight;
}

byId('log').addEventListener('scroll', () => {
  const log = byId('log');
  toEnd.follows = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
});
