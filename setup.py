from configparser import ConfigParser
from setuptools import find_packages, setup
cfg = ConfigParser(delimiters=['='], interpolation=None); cfg.read('settings.ini', encoding='utf8'); c = cfg['DEFAULT']
words = lambda key: c.get(key, '').split()
setup(name=c['lib_name'], version=c['version'], description=c['description'], license=c['license'], author=c['author'],
    author_email=c['author_email'], python_requires='>=' + c['min_python'], zip_safe=False, include_package_data=True,
    packages=find_packages(include=[c['lib_path'], c['lib_path'] + '.*']), install_requires=words('requirements'),
    extras_require={'dev': words('dev_requirements')},
    entry_points={'console_scripts': words('console_scripts'), 'nbdev': [f"{c['lib_path']}={c['lib_path']}._modidx:d"]})
