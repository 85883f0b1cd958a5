// Works on the decisions: the buttons of a picture set its action, everywhere where it is shown, and
// "Save decisions.csv" downloads the table that the page holds. Nothing leaves the browser.
(function () {
  var marks = { t: '\t', n: '\n', r: '\r', '\\': '\\' };
  var table = document.getElementById('decisions').textContent.split('\n').map(function (line) {
    return line.split('\t').map(function (cell) {
      return cell.replace(/\\(.)/g, function (both, mark) { return marks[mark]; });
    });
  });
  var header = table.shift(), action = header.indexOf('action');
  var first = table.map(function (row) { return row[action]; }), saved = first.slice();
  var bar = document.querySelector('.save'), state = bar.querySelector('.state');
  var choices = {};
  document.querySelectorAll('.choice').forEach(function (choice) {
    (choices[choice.dataset.row] = choices[choice.dataset.row] || []).push(choice);
  });

  function differ(from) {
    return table.filter(function (row, k) { return row[action] !== from[k]; }).length;
  }

  function show(number) {
    choices[number].forEach(function (choice) {
      choice.querySelectorAll('button').forEach(function (button) {
        button.setAttribute('aria-pressed', button.value === table[number][action]);
      });
      choice.classList.toggle('changed', table[number][action] !== first[number]);
    });
  }

  function total() {
    var changed = differ(first), unsaved = differ(saved);
    document.querySelectorAll('[data-count]').forEach(function (place) {
      var name = place.dataset.count, count = parseInt(place.dataset.other, 10);
      table.forEach(function (row) { count += row[action] === name; });
      place.textContent = count.toLocaleString('en');
    });
    state.textContent = !changed && !unsaved ? 'Nothing is changed yet.' : changed + ' changed' +
      (unsaved ? ', ' + unsaved + ' not saved.' : ', all saved.');
  }

  function csv() {
    return [header].concat(table).map(function (row) {
      return row.map(function (cell) {
        return /[",;\t\r\n]|^\s|\s$/.test(cell) ? '"' + cell.replace(/"/g, '""') + '"' : cell;
      }).join(',');
    }).join('\n') + '\n';
  }

  document.addEventListener('click', function (event) {
    var button = event.target.closest('.choice button');
    if (!button) return;
    var number = button.parentNode.dataset.row;
    table[number][action] = button.value;
    show(number);
    total();
  });
  bar.querySelector('button').addEventListener('click', function () {
    // The mark in front is how spreadsheet programs know UTF-8.
    var file = new Blob(['\ufeff', csv()], { type: 'text/csv;charset=utf-8' });
    var link = document.createElement('a');
    link.href = URL.createObjectURL(file);
    link.download = 'decisions.csv';
    link.click();
    setTimeout(function () { URL.revokeObjectURL(link.href); }, 60000);
    saved = table.map(function (row) { return row[action]; });
    total();
  });
  window.addEventListener('beforeunload', function (event) {
    if (differ(saved)) event.preventDefault();
  });
  Object.keys(choices).forEach(show);
  total();
  document.documentElement.classList.add('works');
})();
