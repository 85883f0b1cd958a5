// Sorts tables of the class "classes" by the column whose heading, a button, is pressed.
function number(shown) {  // '< 0.1 %' lies below 0.1 %, and '> 99.9 %' above 99.9 %
  return parseFloat(shown.replace(/[<>,]/g, '')) + ({ '<': -0.01, '>': 0.01 }[shown[0]] || 0);
}
document.querySelectorAll('table.classes').forEach(function (table) {
  var heads = table.querySelectorAll('thead th');
  heads.forEach(function (head, column) {
    head.querySelector('button').addEventListener('click', function () {
      var up = head.getAttribute('aria-sort') !== 'ascending';
      heads.forEach(function (other) { other.removeAttribute('aria-sort'); });
      head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
      var body = table.tBodies[0];
      var text = head.classList.contains('text');
      Array.from(body.rows).map(function (row) {
        var cell = row.cells[column];
        var shown = ((text && cell.querySelector('.name')) || cell).textContent.trim();
        return { row: row, key: text ? shown : number(shown) };
      }).sort(function (a, b) {
        if (text) return (up ? 1 : -1) * a.key.localeCompare(b.key, undefined, { numeric: true });
        if (isNaN(a.key) || isNaN(b.key)) return isNaN(a.key) - isNaN(b.key);
        return (up ? 1 : -1) * (a.key - b.key);
      }).forEach(function (item) { body.appendChild(item.row); });
    });
  });
});
