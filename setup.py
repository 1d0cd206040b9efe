"What settings.ini says of the package, for setuptools; and the cards of data/, for a built wheel."

import re, shutil
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).parent.resolve()
cfg = ConfigParser(delimiters=['='], interpolation=None)
cfg.read(here / 'settings.ini', encoding='utf8')
c = cfg['DEFAULT']
words = lambda key: c.get(key, '').split()


class build_with_cards(build_py):
    "Copies data/*.yaml, *.csv and README.md to diffuseq/_data; an editable install reads data/ itself."

    def cards(self):
        return sorted(p for pattern in ('*.yaml', '*.csv', 'README.md') for p in (here / 'data').glob(pattern))

    def target(self, card):
        return Path(self.build_lib) / c['lib_path'] / '_data' / card.name

    def run(self):
        super().run()
        if self.editable_mode:
            return
        for card in self.cards():
            self.target(card).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(card, self.target(card))

    def get_outputs(self, *args, **kwargs):
        copied = [] if self.editable_mode else [str(self.target(card)) for card in self.cards()]
        return super().get_outputs(*args, **kwargs) + copied


def long_description():
    "README.md, each picture replaced by its caption: a package index shows no file of the repository."
    readme = here / 'README.md'
    if not readme.is_file():
        return c['description']
    return re.sub(r'!\[([^]]*)\]\((?!https?:)[^)]*\)', r'*\1*', readme.read_text('utf8'))


setup(
    name=c['lib_name'],
    version=c['version'],
    description=c['description'],
    license=c['license'].upper(),
    license_files=['LICENSE'],
    author=c['author'],
    author_email=c['author_email'],
    python_requires='>=' + c['min_python'],
    zip_safe=False,
    long_description=long_description(),
    long_description_content_type='text/markdown',
    keywords=words('keywords'),
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Science/Research',
        'Natural Language :: English',
        'Operating System :: OS Independent',
        'Programming Language :: Python :: 3',
        'Framework :: Jupyter',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Topic :: Text Processing :: Linguistic',
    ],
    packages=find_packages(include=[c['lib_path'], c['lib_path'] + '.*']),
    include_package_data=False,
    package_data={c['lib_path']: ['pretrained/**/*', 'py.typed']},
    cmdclass={'build_py': build_with_cards},
    install_requires=words('requirements'),
    extras_require={'dev': words('dev_requirements'), 'lora': words('lora_requirements')},
    entry_points={'console_scripts': words('console_scripts'), 'nbdev': [f'{c["lib_path"]}={c["lib_path"]}._modidx:d']},
)
