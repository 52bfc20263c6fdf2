"use strict";
// Comforts on top of pages that are complete without them. Nothing is loaded from anywhere.
document.documentElement.classList.add("script");

// --- tables: a click on a column head sorts, a second one turns the order round ---------------------------------------
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows].map((row) => {
        const cell = row.cells[column];
        const number = cell.dataset.value === undefined ? NaN : parseFloat(cell.dataset.value);
        return { row, number, text: cell.textContent.trim() };
      });
      rows.sort((a, b) => {
        if (isNaN(a.number) !== isNaN(b.number)) return isNaN(a.number) ? 1 : -1; // what has no number stays last
        const order = isNaN(a.number) ? a.text.localeCompare(b.text) : a.number - b.number;
        return down ? -order : order;
      });
      body.append(...rows.map((entry) => entry.row));
    });
  });
}
