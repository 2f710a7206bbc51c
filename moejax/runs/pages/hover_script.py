"""The script of all pages: it shows the values under the pointer."""

SCRIPT = """
for (const chart of document.querySelectorAll('.chart')) {
  const data = JSON.parse(chart.dataset.chart), svg = chart.querySelector('svg');
  const at = chart.querySelector('.at'), cursor = chart.querySelector('.cursor');
  const values = [...chart.querySelectorAll('.key b')], rest = values.map(b => b.textContent);
  const scale = data.log ? Math.log : v => v, [low, high] = (data.x || []).map(scale);
  let pixels;
  const readLines = x => {
    let step = null;
    data.lines.forEach(([xs, ys], i) => {
      let k = 0;
      xs.forEach((v, j) => {
        if (Math.abs(scale(v) - x) < Math.abs(scale(xs[k]) - x)) k = j;
      });
      if (i === 0) step = xs[k];
      values[i].textContent = ys[k] === null ? 'not finite' : ys[k].toLocaleString('en',
        Math.abs(ys[k]) < 1000 ? {maximumSignificantDigits: 4} : {});
    });
    at.textContent = data.columns + ' ' + step.toLocaleString('en');
    return data.left + data.plot * (scale(step) - low) / (high - low);
  };
  const readCells = (share, y) => {
    const [columns, rows] = data.cells;
    if (!pixels) {
      const canvas = document.createElement('canvas'), pen = canvas.getContext('2d');
      [canvas.width, canvas.height] = data.cells;
      pen.drawImage(svg.querySelector('image'), 0, 0, columns, rows);
      pixels = pen.getImageData(0, 0, columns, rows).data;
    }
    const i = Math.min(columns - 1, Math.floor(share * columns));
    const j = Math.max(0, Math.min(rows - 1, Math.floor((y - data.top_edge) / data.height * rows)));
    const [red, , blue, alpha] = pixels.slice(4 * (j * columns + i));
    const chance = data.kind === 'lift' && alpha % 2;
    const octaves = 2 * Math.pow(alpha * (chance ? 4 : 1) / 255, 4 / 3) * (red < blue ? -1 : 1);
    const value = data.kind === 'share' ? (100 * data.top * alpha / 255).toPrecision(2) + '%'
      : data.kind === 'ratio' && alpha === 254 ? 'no token'
      : 'about ' + Math.pow(2, octaves).toPrecision(2) + '×' + (chance ? ', chance' : '');
    const x = Math.round(data.x[0] + (i + .5) / columns * (data.x[1] - data.x[0]));
    at.textContent = `${data.rows[0]} ${data.rows[j + 1]}, ${data.columns} ${
      data.names ? data.names[i] : x.toLocaleString('en')}: ${value}`;
    return data.left + data.plot * (i + .5) / columns;
  };
  const move = event => {
    const point = new DOMPoint(event.clientX, event.clientY)
      .matrixTransform(svg.getScreenCTM().inverse());
    const share = Math.max(0, Math.min(1, (point.x - data.left) / data.plot));
    const x = data.lines ? readLines(low + share * (high - low))
      : readCells(share, point.y);
    cursor.setAttribute('x1', x);
    cursor.setAttribute('x2', x);
    cursor.style.visibility = 'visible';
  };
  svg.addEventListener('pointermove', move);
  svg.addEventListener('pointerdown', move);
  svg.addEventListener('pointerleave', () => {
    values.forEach((b, i) => { b.textContent = rest[i]; });
    at.textContent = '';
    cursor.style.visibility = 'hidden';
  });
}
"""
