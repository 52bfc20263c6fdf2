// --- pictures: the difference to full precision, enlarged ---------------------------------------------------------------
function pixels(image) {
  const canvas = document.createElement("canvas");
  canvas.width = image.naturalWidth;
  canvas.height = image.naturalHeight;
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  return { canvas, context, image: context.getImageData(0, 0, canvas.width, canvas.height) };
}

const gain = document.getElementById("difference");
if (gain) {
  gain.addEventListener("change", () => {
    const rows = [...document.querySelectorAll("table.grid tbody tr")];
    const reference = [...rows[0].querySelectorAll("img")];
    const plain = reference.map((image) => pixels(image).image);
    for (const row of rows.slice(1)) {
      [...row.cells].slice(1).forEach((cell, column) => {
        const image = cell.querySelector("img");
        if (!image) return;
        image.dataset.plain ||= image.src;
        if (gain.value === "0") {
          image.src = image.dataset.plain;
          return;
        }
        const source = new Image();
        source.onload = () => {
          const found = pixels(source);
          const values = found.image.data;
          for (let i = 0; i < values.length; i++) if (i % 4 !== 3) values[i] = Math.min(255, Math.abs(values[i] - plain[column].data[i]) * +gain.value);
          found.context.putImageData(found.image, 0, 0);
          image.src = found.canvas.toDataURL();
        };
        source.src = image.dataset.plain;
      });
    }
  });
}
