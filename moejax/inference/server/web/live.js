// What the engine does, once a second.

const EVERY = 1000, PATIENCE = 10000, KEPT = 120; // milliseconds, and looks

const live = {
  looks: [], // figures, the newest last
  layers: [], // the numbers of the routed ones
  about: '', // its description
  known: false, // whether the server has told what it serves
  timer: 0,
  turn: 0,
  cell: null, // [layer, expert] that is told of
};

async function look() {
  clearTimeout(live.timer);
  const turn = live.turn += 1; // one that was asked for later goes on alone
  let wait = EVERY;
  try {
    const found = await (await ask('live', null, AbortSignal.timeout(PATIENCE))).json();
    byId('key-form').hidden = true;
    meet(found);
    take(found.figures);
  } catch (error) {
    wait = 3 * EVERY;
    if (error instanceof Refused && error.status === 401) return setState('wait', 'waiting for an API key');
    setState('bad', error instanceof Refused ? error.message
      : 'The server does not answer. This page goes on asking.');
  }
  if (live.turn === turn && !document.hidden) live.timer = setTimeout(look, wait);
}

document.addEventListener('visibilitychange', () => { if (!document.hidden) look(); });

function setState(kind, words) {
  byId('lamp').className = kind;
  if (byId('state-words').textContent === words) return;
  byId('state').setAttribute('aria-live', kind === 'good' ? 'off' : 'polite');
  byId('state-words').textContent = words;
}

// The first answer says what is served; a server that was started anew may serve something else.
function meet(found) {
  if (live.about !== found.description) live.looks = []; // of another model
  live.about = found.description;
  live.layers = found.layers;
  byId('name').textContent = document.title = found.model;
  byId('about').textContent = found.description;
  if (live.known) return;
  live.known = true;
  document.querySelector('main').hidden = false;
  byId('tokens').value = Math.max(1, Math.min(200, found.length >> 1));
  byId('modes').hidden = !found.chat;
  setMode(found.chat);
  if (!found.layers.length) byId('empty').textContent = 'This model has no routed layers: its tokens have no colours.';
}

function take(figures) {
  if (figures.failed) setState('bad', `The engine has stopped: ${figures.failed}`);
  else setState('good', figures.running ? 'at work' : 'ready');
  const last = live.looks.at(-1);
  if (last && (figures.seconds < last.seconds || figures.drawn_tokens < last.drawn_tokens)) live.looks = [];
  if (!last || figures.seconds !== last.seconds) live.looks.push(figures);
  live.looks.splice(0, live.looks.length - KEPT);
  drawTiles(figures);
  drawMoreTiles(figures);
  drawRates();
  if (figures.load_LE) drawMap();
}

const back = seconds => { // the newest look that is so old, or the oldest
  const now = live.looks.at(-1).seconds;
  return live.looks.findLast(one => one.seconds <= now - seconds) || live.looks[0];
};

function drawTiles(now) {
  const before = back(5), passed = now.seconds - before.seconds;
  const set = (id, words) => { byId(id).textContent = words; };
  set('rate', passed ? show((now.drawn_tokens - before.drawn_tokens) / passed) : '–');
  set('running', now.running);
  set('seats', `of ${now.seats} at most`);
  set('waiting', show(now.waiting));
  set('cache', `${show(100 * now.pages_used / now.pages)}%`);
  set('pages', `${show(now.pages_used)} of ${show(now.pages)} pages`);
  byId('cache-bar').style.width = `${100 * now.pages_used / now.pages}%`;
  const first = mean('first_seconds'), next = mean('next_seconds');
  set('first', first === null ? '–' : seconds(first));
  set('next', next === null ? '–' : seconds(next));
}

// What there is only where experts move, and where drafts are made.
function drawMoreTiles(now) {
  const {balance, drafted, accepted} = now, percent = part => `${show(100 * part)}%`;
  byId('balance-tile').hidden = !balance;
  byId('drafts-tile').hidden = !drafted;
  if (balance) {
    const {before, after, moves} = balance;
    byId('balance').textContent = balance.now.all ? percent(balance.now.all) : '–';
    byId('balance-words').textContent = 'mean over largest load; '
      + (before && after ? `${percent(before.all)} became ${percent(after.all)} by the last of ${show(moves)} moves`
        : 'no expert has moved yet');
  }
  if (drafted) {
    byId('drafts').textContent = percent(accepted / drafted);
    byId('drafts-words').textContent = `${show(accepted)} of ${show(drafted)} tokens`;
  }
}

// Of the last minute; where nothing came in it, since the start.
function mean(name) {
  const now = live.looks.at(-1)[name], before = back(60)[name];
  if (now.count > before.count) return (now.sum - before.sum) / (now.count - before.count);
  return now.count ? now.sum / now.count : null;
}

function drawRates() {
  const now = live.looks.at(-1).seconds;
  const points = live.looks.slice(1).map((one, i) => {
    const before = live.looks[i];
    return [120 - (now - one.seconds), (one.drawn_tokens - before.drawn_tokens) / (one.seconds - before.seconds)];
  }).filter(([x]) => x >= 0);
  const top = Math.max(1, ...points.map(([, rate]) => rate));
  const line = points.map(([x, rate]) => `${x.toFixed(1)},${(32 - 30 * rate / top).toFixed(1)}`).join('L');
  byId('rates').firstElementChild.setAttribute('d', line && `M${line}`);
}

// Load over the mean of its layer, of the time that is chosen; null: there was none.
function ratios() {
  const now = live.looks.at(-1).load_LE;
  const minute = document.querySelector('[name=span]:checked').value === 'minute';
  const before = minute ? back(60).load_LE : null;
  const counts = now.map((row, i) => row.map((count, j) => count - (before ? before[i][j] : 0)));
  return counts.map(row => {
    const total = row.reduce((sum, count) => sum + count, 0);
    return {counts: row, ratios: row.map(count => total ? count * row.length / total : null)};
  });
}

function drawMap() {
  const layers = ratios();
  experts.count = layers[0].counts.length;
  byId('map-figure').hidden = false;
  const tops = layers.map(layer => Math.max(...layer.ratios.map(ratio => ratio ?? 0)));
  const top = Math.max(...tops), at = tops.indexOf(top);
  byId('ratio').textContent = top ? `${top.toFixed(2)}×` : '–';
  byId('ratio-where').textContent = top ? `load: layer ${nameOf(at)}, expert ${layers[at].ratios.indexOf(top)}` : 'no token yet';
  drawCells(layers, tops);
  tellCell();
}

function drawCells(layers, tops) {
  const canvas = byId('map-cells'), pen = canvas.getContext('2d');
  const rows = layers.length, columns = experts.count;
  const height = Math.max(64, Math.min(320, rows * (rows > 16 ? 12 : 28)));
  const scale = window.devicePixelRatio || 1, width = canvas.clientWidth;
  canvas.style.height = `${height}px`;
  [canvas.width, canvas.height] = [Math.round(width * scale), Math.round(height * scale)];
  const gap = columns <= 32 && rows <= 32 ? scale : 0;
  const edge = (i, of, size) => Math.round(i * size / of);
  layers.forEach((layer, row) => layer.ratios.forEach((ratio, column) => {
    const [x, y] = [edge(column, columns, canvas.width), edge(row, rows, canvas.height)];
    const [right, bottom] = [edge(column + 1, columns, canvas.width), edge(row + 1, rows, canvas.height)];
    pen.fillStyle = shade(ratio);
    pen.fillRect(x, y, right - x - gap, bottom - y - gap);
  }));
  const about = `Load of ${columns} experts in ${rows} layers, over the mean of their layer. The largest: `
    + `${byId('ratio').textContent}, ${byId('ratio-where').textContent.replace('load: ', '')}. The arrow keys go from expert to expert.`;
  if (canvas.getAttribute('aria-label') !== about) canvas.setAttribute('aria-label', about);
  drawRows(rows, height, tops);
}

// The colours of the reports' maps: two octaves on each side of fair.
function shade(ratio) {
  const style = shade.style ||= getComputedStyle(document.documentElement);
  if (ratio === null) return 'transparent';
  if (ratio === 0) return `rgb(${style.getPropertyValue('--empty-rgb')})`;
  const octaves = Math.max(-1, Math.min(1, Math.log2(ratio) / 2));
  const name = octaves > 0 ? '--warm' : '--cold';
  return `rgba(${style.getPropertyValue(name)},${Math.abs(octaves) ** 0.75})`;
}

function drawRows(rows, height, tops) {
  const stride = Math.ceil(rows * 15 / height);
  const words = (id, text) => byId(id).replaceChildren(...tops.map((top, row) => {
    const label = document.createElement('span');
    if (row % stride === 0) label.textContent = text(row, top);
    return label;
  }));
  words('map-rows', nameOf);
  words('map-ratios', (row, top) => top ? `${top.toFixed(2)}×` : '–');
  const columns = experts.count, step = 2 ** Math.max(0, Math.ceil(Math.log2(columns / 16)));
  byId('map-experts').replaceChildren(...Array.from({length: columns}, (_, i) => {
    const label = document.createElement('span');
    if (i % step === 0) label.textContent = i;
    return label;
  }));
}

function tellCell() {
  const at = byId('map-at');
  if (!live.cell) { at.textContent = '\u00a0'; return; }
  const [row, column] = live.cell, layer = ratios()[row];
  if (!layer) return;
  const ratio = layer.ratios[column], count = layer.counts[column];
  at.textContent = `layer ${nameOf(row)}, expert ${column}: `
    + (ratio === null ? 'no token' : `${ratio.toFixed(2)}× fair, ${show(count)} choices`);
}

const cells = byId('map-cells');
for (const kind of ['pointermove', 'pointerdown']) {
  cells.addEventListener(kind, event => {
    const box = cells.getBoundingClientRect(), rows = live.looks.at(-1).load_LE.length;
    const part = (at, of, count) => Math.max(0, Math.min(count - 1, Math.floor(at / of * count)));
    live.cell = [part(event.clientY - box.top, box.height, rows),
      part(event.clientX - box.left, box.width, experts.count)];
    tellCell();
  });
}
cells.addEventListener('pointerleave', event => { if (event.pointerType === 'mouse') { live.cell = null; tellCell(); } });
cells.addEventListener('click', () => { if (live.cell && live.cell[0] < experts.layers) chooseLayer(live.cell[0]); });
cells.addEventListener('keydown', event => {
  const step = {ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0]}[event.key];
  if (!step || !live.looks.length) return;
  event.preventDefault();
  const sizes = [live.looks.at(-1).load_LE.length, experts.count];
  live.cell = live.cell ? live.cell.map((at, i) => (at + step[i] + sizes[i]) % sizes[i]) : [0, 0];
  tellCell();
});
for (const radio of document.querySelectorAll('[name=span]')) radio.addEventListener('change', drawMap);
window.addEventListener('resize', () => { if (live.looks.at(-1)?.load_LE) drawMap(); });
setMode(false);
look();
