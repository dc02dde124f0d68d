// For the element below the upload. Dims the result as soon as something else is asked for, takes what is pasted or
// dropped anywhere, tells that the server cannot be reached, and follows the browser's Back.
const PICKS = '#examples button, #smear-examples button, #real-cells button, #ask-field, #ask-batch, [data-cell]'
const page = document.body.dataset, files = () => document.querySelector('#upload input[type=file]')
const dim = () => { page.lkBusy = '1' }
const give = (list) => {
  if (!files() || !list.length) return
  const transfer = new DataTransfer()
  for (const file of list) transfer.items.add(file)
  files().files = transfer.files
  files().dispatchEvent(new Event('change', {bubbles: true}))
}
document.addEventListener('change', (event) => {
  if (event.target.closest?.('#upload') && event.target.files?.length) dim()
}, true)
// Beside the box, the browser would leave the page for the file.
document.addEventListener('dragover', (event) => event.preventDefault())
document.addEventListener('drop', (event) => {
  if (!event.dataTransfer?.files.length) return
  event.preventDefault()
  event.stopPropagation()
  const entries = [...event.dataTransfer.items].map((one) => one.webkitGetAsEntry?.()).filter(Boolean)
  if (!entries.some((one) => one.isDirectory)) return give(event.dataTransfer.files)
  dim()
  zipped(entries).then((file) => give([file]))
}, true)
document.addEventListener('click', (event) => { if (event.target.closest(PICKS)) dim() }, true)
document.addEventListener('paste', (event) => {
  if (!event.target.closest('input, textarea')) give(event.clipboardData.files)
})
const ask = window.fetch
window.fetch = (...request) => ask(...request).catch((error) => {
  if (error.name != 'AbortError') { delete page.lkBusy; page.lkOffline = '1' }
  throw error
})
addEventListener('popstate', () => {
  const to = new URL(location).searchParams, shown = document.querySelector('#visit [data-model]')?.dataset ?? {}
  const tab = document.querySelector(`[role=tab][data-tab-id="${to.get('tab') ?? 'cell'}"]`)
  if (to.get('model') && to.get('model') != shown.model) location.reload()
  else if (tab && tab.getAttribute('aria-selected') != 'true') tab.click()
  else document.querySelectorAll('#examples button, #smear-examples button')[to.get('example') - 1]?.click()
})
