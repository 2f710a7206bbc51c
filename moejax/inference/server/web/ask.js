'use strict';
// Asking the server: the API key, answers as JSON, and answers that come part by part.

const byId = id => document.getElementById(id);

const key = {
  get() { try { return sessionStorage.getItem('moejax-key') || ''; } catch { return this.kept || ''; } },
  set(value) { this.kept = value; try { sessionStorage.setItem('moejax-key', value); } catch { /* kept here alone */ } },
};

class Refused extends Error { // the server has answered, and said no
  constructor(message, status) { super(message); this.status = status; }
}

async function ask(path, body, signal) {
  const headers = key.get() ? {Authorization: `Bearer ${key.get()}`} : {};
  const init = {headers, signal, cache: 'no-store'};
  if (body) Object.assign(init, {method: 'POST', body: JSON.stringify(body)});
  if (body) headers['Content-Type'] = 'application/json';
  const answer = await fetch(path, init);
  if (answer.ok) return answer;
  let words = `the server answered with status ${answer.status}.`;
  try { words = (await answer.json()).error.message; } catch { /* not one of its own errors */ }
  if (answer.status === 401) askForKey();
  throw new Refused(words, answer.status);
}

// The parts of a streamed answer, as objects. Throws what the server says went wrong.
async function* readParts(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let left = '';
  for (;;) {
    const {value, done} = await reader.read();
    if (done) throw new Error('the connection broke off before the end of the answer.');
    const events = (left + value).split('\n\n');
    left = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, '');
      if (data === '[DONE]') return;
      const part = JSON.parse(data);
      if (part.error) throw new Refused(part.error.message, 0);
      yield part;
    }
  }
}

function askForKey() {
  if (!byId('key-form').hidden) return;
  byId('key-wrong').textContent = key.get() ? 'The key that was given is not one of the server’s.' : '';
  byId('key-form').hidden = false;
  byId('key').focus();
}

byId('key-form').addEventListener('submit', event => {
  event.preventDefault();
  key.set(byId('key').value.trim());
  byId('key').value = '';
  byId('key-form').hidden = true;
  look();
});

const capital = words => words.charAt(0).toUpperCase() + words.slice(1);
const say = words => { byId('said').textContent = words; }; // to screen readers
const show = (value, digits = 3) => value.toLocaleString('en',
  Math.abs(value) < 1000 ? {maximumSignificantDigits: digits} : {maximumFractionDigits: 0});
const seconds = value => value < 1 ? `${show(value * 1000)} ms` : `${show(value)} s`;
