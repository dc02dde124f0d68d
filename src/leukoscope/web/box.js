// For the element below the upload. Dims the result as soon as something else is asked for, takes a pasted picture,
// tells that the server cannot be reached, and follows the browser's Back.
const PICKS = '#examples button, #smear-examples button, #real-cells button, #samples button, [data-cell]'
const page = document.body.dataset, files = () => document.querySelector('#upload input[type=file]')
const dim = () => { page.lkBusy = '1' }
for (const kind of ['change', 'drop']) document.addEventListener(kind, (event) => {
  if (event.target.closest?.('#upload') && (event.dataTransfer ?? event.target).files?.length) dim()
}, true)
document.addEventListener('click', (event) => { if (event.target.closest(PICKS)) dim() }, true)
document.addEventListener('paste', (event) => {
  if (!event.clipboardData.files.length || event.target.closest('input, textarea')) return
  files().files = event.clipboardData.files
  files().dispatchEvent(new Event('change', {bubbles: true}))
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
